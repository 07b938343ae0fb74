/**
 * What a pod is to be, when containerd asks for it by its Sandbox API: no bundle says it then, but Kubernetes' own configuration of the pod
 * (CRI, `runtime.v1.PodSandboxConfig`). From it the specification that a pod's first container has elsewhere. Pure.
 */

import type { PodSpec } from "../agent/oci-spec.ts";
import { SANDBOX_LIMIT_ANNOTATIONS } from "./sizing.ts";
import type { Limits } from "./sizing.ts";

/** A pod's resolver; all empty for none. */
export interface PodDns {
	readonly servers: readonly string[];
	readonly searches: readonly string[];
	readonly options: readonly string[];
}

/** Namespaces that a pod's containers may have from the node. */
export type PodNamespace = "network" | "pid" | "ipc";

/** A pod as Kubernetes describes it. */
export interface PodConfig {
	readonly hostname: string;
	/** Undefined: the node's. */
	readonly dns: PodDns | undefined;
	readonly annotations: Readonly<Record<string, string>>;
	/** Empty for none: the VM then stays in snpd's group. */
	readonly cgroupParent: string;
	/** Those that the pod wants to share with the node. */
	readonly ofNode: readonly PodNamespace[];
	/** It asks for a user namespace. */
	readonly userNamespace: boolean;
	readonly sysctls: Readonly<Record<string, string>>;
	/** The sum of its containers' limits; undefined when it is not told. */
	readonly limits: Limits | undefined;
}

/**
 * Kernel parameters that containerd 2 gives to every pod by itself (`enable_unprivileged_ports`, `enable_unprivileged_icmp`), except when the
 * Sandbox API is used.
 */
const DEFAULT_SYSCTLS: Readonly<Record<string, string>> = {
	"net.ipv4.ip_unprivileged_port_start": "0",
	"net.ipv4.ping_group_range": "0 2147483647",
};

/** Namespaces that every pod has for itself. */
const OWN_NAMESPACES = ["mount", "uts"] as const;
const SYSTEMD_SLICE = ".slice";

/**
 * The specification that the pod would have as a container.
 * @param netns path of its network namespace; empty for loopback alone
 */
export function podSpec(podId: string, config: PodConfig, netns: string): PodSpec {
	const own = (["network", "pid", "ipc"] as const).filter((type) => !config.ofNode.includes(type));
	const namespaces = [...own, ...OWN_NAMESPACES, ...(config.userNamespace ? (["user"] as const) : [])];
	return {
		hostname: config.hostname,
		annotations: { ...config.annotations, ...limitAnnotations(config.limits) },
		linux: {
			sysctl: { ...DEFAULT_SYSCTLS, ...config.sysctls },
			...(config.cgroupParent === "" ? {} : { cgroupsPath: cgroupsPath(config.cgroupParent, podId) }),
			namespaces: namespaces.map((type) => ({ type, ...(type === "network" ? { path: netns } : {}) })),
		},
	};
}

/** The limits in the form in which containerd hands them to a pod's first container; a pod can't write them itself. */
function limitAnnotations(limits: Limits | undefined): Record<string, string> {
	return {
		[SANDBOX_LIMIT_ANNOTATIONS.cpuPeriod]: String(limits?.cpuPeriodUs ?? 0),
		[SANDBOX_LIMIT_ANNOTATIONS.cpuQuota]: String(limits?.cpuQuotaUs ?? 0),
		[SANDBOX_LIMIT_ANNOTATIONS.memory]: String(limits?.memoryBytes ?? 0),
	};
}

/** A group below the pod's, named as containerd's CRI plugin names it: with systemd, `slice:prefix:name`. */
function cgroupsPath(parent: string, podId: string): string {
	const slice = parent.split("/").at(-1) ?? "";
	return slice.endsWith(SYSTEMD_SLICE) ? `${slice}:cri-containerd:${podId}` : `${parent.replace(/\/+$/u, "")}/${podId}`;
}
