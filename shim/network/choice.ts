/** Which network a pod asks for, from the namespaces of its specification (OCI runtime specification, config-linux.md). Pure. */

import { ShimError } from "../base/errors.ts";

/** A pod's network: loopback alone, or what is in a namespace. */
export type NetworkChoice = { readonly kind: "loopback" } | { readonly kind: "namespace"; readonly path: string };

/** A namespace as a specification lists it. */
interface ListedNamespace {
	readonly type: string;
	readonly path?: string | null | undefined;
}

/**
 * Decides what a pod's network is made of. A namespace without a path is a new, empty one: the VM has loopback and nothing else.
 * @throws ShimError `network.unsupported` when no namespace is listed: that means the host's own
 */
export function chooseNetwork(namespaces: readonly ListedNamespace[]): NetworkChoice {
	const network = namespaces.find((namespace) => namespace.type === "network");
	if (network === undefined) throw hostNetwork();
	return (network.path ?? "") === "" ? { kind: "loopback" } : { kind: "namespace", path: network.path ?? "" };
}

/** The refusal of the host's own network. */
export function hostNetwork(): ShimError {
	const text =
		"the pod asks for the host's own network (hostNetwork): its VM has a network stack of its own, and the host's interfaces can't be in two places at once";
	return new ShimError("network.unsupported", text, { remedy: "take hostNetwork out of the pod, or run it with another runtime class" });
}
