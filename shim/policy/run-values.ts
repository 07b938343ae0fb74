/** What only the run of a pod tells: names that controllers make, addresses, host names. */

import type { PodSource } from "./manifest.ts";
import type { Expected } from "./policy-data.ts";
import { ANY_TEXT } from "./text-template.ts";
import type { Piece, Settle, Template } from "./text-template.ts";

const LABEL = "[a-z0-9](?:[-a-z0-9]*[a-z0-9])?";
const NAME: Piece = { like: "[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?", sample: "node-1" };
const UUID: Piece = { like: "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", sample: "00000000-0000-4000-8000-000000000000" };
const ADDRESS: Piece = { like: "[0-9a-fA-F.:]{2,45}", sample: "192.0.2.7" };
const ADDRESSES: Piece = { like: "[0-9a-fA-F.:,]{2,127}", sample: "192.0.2.7" };
const META: Piece = { like: ANY_TEXT, sample: "" };
/** The longest host name that kubelet gives. */
const MAX_HOSTNAME = 63;
/** What is left of a name when something is put behind it (Kubernetes, names.SimpleNameGenerator). */
const MAX_PREFIX = 58;

/** A pod's name: its own, or that of its controller and what that puts behind it. */
export function podName({ kind, name }: PodSource): Template {
	if (kind === "Pod" && name !== "") return name.endsWith("-") ? [name, { like: "[a-z0-9]{5}", sample: "abcde" }] : [name];
	if (name === "") return [NAME];
	return kind === "StatefulSet"
		? [name, "-", { like: "[0-9]+", sample: "0" }]
		: [name.slice(0, MAX_PREFIX), { like: "[-a-z0-9]*", sample: "" }, "-", { like: LABEL, sample: "abcde" }];
}

/** The pod's host name. */
export function hostnameOf(pod: PodSource, settle: Settle): Expected {
	const { hostname, setHostnameAsFQDN } = pod.spec;
	const own = hostname === undefined || hostname === null || hostname === "" ? podName(pod) : [hostname];
	if (setHostnameAsFQDN === true) return settle([...own, { like: "[-a-z0-9.]*", sample: "" }]);
	return own.every((piece) => typeof piece === "string")
		? own
				.join("")
				.slice(0, MAX_HOSTNAME)
				.replace(/[-.]+$/u, "")
		: settle(own);
}

/** The value of a field that a variable refers to (Kubernetes API reference, `fieldRef`). */
export function fieldTemplate(path: string, pod: PodSource): Template {
	const key = /^metadata\.(?<map>labels|annotations)\['(?<key>.+)'\]$/u.exec(path)?.groups;
	if (key !== undefined) {
		const value = (key["map"] === "labels" ? pod.labels : pod.annotations)[key["key"] ?? ""];
		return value === undefined ? [META] : [value];
	}
	switch (path) {
		case "metadata.name":
			return podName(pod);
		case "metadata.namespace":
			return pod.namespace === undefined ? [{ like: LABEL, sample: "default" }] : [pod.namespace];
		case "metadata.uid":
			return [UUID];
		case "spec.serviceAccountName":
			return [pod.spec.serviceAccountName ?? "default"];
		case "spec.nodeName":
			return [NAME];
		case "status.podIP":
		case "status.hostIP":
			return [ADDRESS];
		case "status.podIPs":
		case "status.hostIPs":
			return [ADDRESSES];
		default:
			return [META];
	}
}
