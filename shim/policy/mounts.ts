/** The mounts of a container: what it declares, and what kubelet and containerd add. */

import { ShimError } from "../base/errors.ts";
import type { PodSource } from "./manifest.ts";
import type { Expected, MountData, MountKind } from "./policy-data.ts";
import { volumeKind } from "./pod-fields.ts";
import type { ContainerYaml, VolumeYaml } from "./pod-schema.ts";
import { expand } from "./text-template.ts";
import type { Settle, Template } from "./text-template.ts";

const TOKEN_PLACE = "/var/run/secrets/kubernetes.io/serviceaccount";
const DEFAULT_MESSAGE = "/dev/termination-log";
const ANY_PLACE = { pattern: "^(?s:.*)$" };

/** Files that containerd and kubelet bring to every container; whether it may write them depends on their versions and on its root. */
const POD_FILES: readonly string[] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/**
 * The mounts that a container may have.
 * @param valueOf what `$(NAME)` stands for in `subPathExpr`
 * @throws ShimError `policy.input` for a volume that the pod does not have
 */
export function mountsOf(
	pod: PodSource,
	container: ContainerYaml,
	valueOf: (name: string) => Template | undefined,
	settle: Settle,
): MountData[] {
	const own = (container.volumeMounts ?? []).map((mount): MountData => {
		const volume = pod.spec.volumes?.find(({ name }) => name === mount.name);
		if (volume === undefined) {
			// A StatefulSet's claims are volumes as well.
			if (pod.kind === "StatefulSet") return claimed(mount, subOf(mount, valueOf, settle));
			throw new ShimError(
				"policy.input",
				`${pod.where}: container ${container.name} mounts the volume ${mount.name}, which the pod does not have`,
			);
		}
		return { ...declared(volume, mount, subOf(mount, valueOf, settle)), destination: clean(mount.mountPath), volume: mount.name };
	});
	const taken = new Set(own.map(({ destination }) => destination));
	return [...own, ...added(pod, container).filter(({ destination }) => !taken.has(destination))];
}

type MountYaml = NonNullable<ContainerYaml["volumeMounts"]>[number];
type Form = Pick<MountData, "kinds" | "access" | "sub">;

/** containerd cleans the path. */
function clean(path: string): string {
	return path === "/" ? path : path.replaceAll(/\/{2,}/gu, "/").replace(/\/$/u, "");
}

function subOf({ subPath, subPathExpr }: MountYaml, valueOf: (name: string) => Template | undefined, settle: Settle): Expected {
	if (subPathExpr !== undefined && subPathExpr !== null) return settle(expand(subPathExpr, valueOf));
	return clean(subPath ?? "");
}

function declared(volume: VolumeYaml, mount: MountYaml, sub: Expected): Form {
	const access = mount.readOnly === true ? "ro" : "rw";
	switch (volumeKind(volume)) {
		case "configMap":
		case "secret":
		case "projected":
		case "downwardAPI":
			return { kinds: sub === "" ? ["config"] : ["file", "own-copy"], access: "ro", sub: sub === "" ? "" : ANY_PLACE };
		case "emptyDir":
			return { kinds: [emptyDirKind(volume)], access, sub };
		case "hostPath":
			// A folder that is replaced as a whole is brought as configuration is.
			return { kinds: ["copy", "file", ...(sub === "" ? (["config"] as const) : [])], access, sub: ANY_PLACE };
		case "persistentVolumeClaim":
		case "ephemeral":
		case "csi":
		case undefined:
			return claim(volume.persistentVolumeClaim?.readOnly === true ? "ro" : access, sub);
	}
}

function emptyDirKind({ emptyDir }: VolumeYaml): MountKind {
	const medium = emptyDir?.medium ?? "";
	if (medium === "Memory") return "memory";
	return medium.startsWith("HugePages") ? "huge" : "scratch";
}

/** A CSI driver's folder in the volume is called `mount`. */
function claim(access: "ro" | "rw", sub: Expected): Form {
	const place = sub === "" ? { pattern: "^(?:mount)?$" } : sub;
	return { kinds: access === "ro" ? ["disk", "own-copy", "file"] : ["disk"], access, sub: place };
}

function claimed(mount: MountYaml, sub: Expected): MountData {
	return { ...claim(mount.readOnly === true ? "ro" : "rw", sub), destination: clean(mount.mountPath), volume: mount.name };
}

function added({ spec }: PodSource, { terminationMessagePath }: ContainerYaml): MountData[] {
	const file = (destination: string): MountData => ({
		destination,
		volume: `file ${destination}`,
		kinds: ["file"],
		access: "either",
		sub: "",
		optional: true,
	});
	const files = [...POD_FILES, clean(terminationMessagePath ?? DEFAULT_MESSAGE)].map(file);
	if (spec.automountServiceAccountToken === false) return files;
	return [...files, { destination: TOKEN_PLACE, volume: "service account", kinds: ["config"], access: "ro", sub: "", optional: true }];
}
