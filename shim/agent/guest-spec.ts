/**
 * From the OCI specification that containerd wrote for the host to the one that holds inside the VM (Kata agent protocol, `grpc.Spec`).
 * Pure: nothing is read or changed. What can't exist across a VM is refused by name.
 */

import { createHash } from "node:crypto";

import { ShimError } from "../base/errors.ts";
import type { grpc } from "../../proto/gen/agent.js";
import { guestDevices } from "./guest-devices.ts";
import { guestResources, unsigned64 } from "./guest-resources.ts";
import type { OciMount, OciProcess, OciSpec, PodSpec } from "./oci-spec.ts";

/** Where the agent keeps what the host gives it (Kata agent protocol). */
export const GUEST_SHARED = "/run/kata-containers/shared/containers";
/** Where files lie that the host brings; the agent removes a container's with the container. */
const GUEST_FILES = "/run/kata-containers/snp";
const GUEST_VOLUMES = "/run/kata-containers/volumes";
const GUEST_MOUNTS = "/run/kata-containers/sandbox/volumes";
const GUEST_SHM = "/run/kata-containers/sandbox/shm";

/** The guest path of a container's root file system. */
export function guestRootfs(containerId: string): string {
	return `${GUEST_SHARED}/passthrough/${containerId}/rootfs`;
}

/** The guest path of a container's file number `index`. */
export function guestFile(containerId: string, index: number): string {
	return `${GUEST_FILES}/${containerId}/${index}`;
}

/** The guest's folder of a volume that the host brings file by file and the pod's containers share (docs/contracts.md). */
export function guestVolume(hostPath: string): string {
	return `${GUEST_VOLUMES}/${volumeName(hostPath)}`;
}

/**
 * The guest's folder of a volume that the guest makes or mounts itself: an emptyDir, a disk, a shared folder.
 * @param apart the agent has the capability `snp.mounts.v1`; others have one place for all volumes
 */
export function guestOwnVolume(hostPath: string, apart: boolean): string {
	return apart ? `${GUEST_MOUNTS}/${volumeName(hostPath)}` : guestVolume(hostPath);
}

/** The guest's folder of a volume that one container has for itself; it goes with the container. */
export function guestContainerVolume(containerId: string, hostPath: string): string {
	return `${GUEST_FILES}/${containerId}/${volumeName(hostPath)}`;
}

function volumeName(hostPath: string): string {
	return createHash("sha256").update(hostPath).digest("hex").slice(0, 32);
}

/** Where a bind mount's source lies in the guest. */
export interface GuestSource {
	readonly path: string;
	/** The source is this path below it: the agent finds it without leaving the volume. */
	readonly sub?: string;
}

/** What the pod says about a container besides its specification. */
export interface GuestSpecContext {
	readonly containerId: string;
	/** See `refuseHostNamespaces`. */
	readonly podPid: number;
	/** True for the first container of a Kubernetes pod (the pause container). */
	readonly sandbox: boolean;
	/** The agent takes seccomp profiles (`agent_details.supports_seccomp`). */
	readonly seccomp: boolean;
	/** The agent takes files of cgroup version 2 and lists of processors (`snp.limits.v1`). */
	readonly limits: boolean;
	/** Kernel parameters of the whole pod; the container's own win. */
	readonly podSysctls?: Readonly<Record<string, string>>;
	/** The sources of bind mounts that were brought into the VM, by destination. */
	readonly guestSources: ReadonlyMap<string, GuestSource>;
	/** Paths in the container of block devices that were plugged into the VM. */
	readonly disks?: ReadonlySet<string>;
}

/** Converts `process` of a specification; SELinux and AppArmor labels belong to the host and are dropped. */
export function guestProcess(process: OciProcess): grpc.Process.$Properties {
	const user = process.user ?? { uid: 0, gid: 0 };
	const capabilities = process.capabilities;
	return {
		Terminal: process.terminal ?? false,
		...(process.consoleSize ? { ConsoleSize: { Height: process.consoleSize.height, Width: process.consoleSize.width } } : {}),
		User: { UID: user.uid, GID: user.gid, AdditionalGids: user.additionalGids ?? [], Username: user.username ?? "" },
		Args: process.args,
		Env: process.env ?? [],
		Cwd: process.cwd,
		...(capabilities
			? {
					Capabilities: {
						Bounding: capabilities.bounding ?? [],
						Effective: capabilities.effective ?? [],
						Inheritable: capabilities.inheritable ?? [],
						Permitted: capabilities.permitted ?? [],
						Ambient: capabilities.ambient ?? [],
					},
				}
			: {}),
		Rlimits: (process.rlimits ?? []).map((limit) => ({ Type: limit.type, Hard: unsigned64(limit.hard), Soft: unsigned64(limit.soft) })),
		NoNewPrivileges: process.noNewPrivileges ?? false,
		OOMScoreAdj: process.oomScoreAdj ?? 0,
	};
}

/** Namespaces that exist inside the VM; the rest is the VM's own. */
const GUEST_NAMESPACES = new Set(["ipc", "uts", "mount"]);
/** Namespaces that a specification must have: without one, the container asks for the host's. */
const REQUIRED_NAMESPACES = {
	network: "host network",
	pid: "host PID namespace",
	ipc: "host IPC namespace",
	mount: "host mount namespace",
} as const;

/** True when a container shares its PID namespace with others of the pod: it then names one. */
export function sharesPidNamespace(spec: OciSpec): boolean {
	return (spec.linux?.namespaces ?? []).some(({ type, path }) => type === "pid" && (path ?? "") !== "");
}

/**
 * Refuses a specification that asks for namespaces of the host.
 * @param podPid the number that containerd was told for the pod's tasks: namespaces of it are the pod's own; 0 while there is none
 * @param asker whose specification it is
 * @throws ShimError `spec.unsupported` that names the namespace
 */
export function refuseHostNamespaces(spec: PodSpec, podPid: number, asker: "container" | "pod" = "container"): void {
	const namespaces = spec.linux?.namespaces ?? [];
	// The network's is the host's end of the pod's interfaces, and goes into the VM.
	const foreign = namespaces.find(
		({ type, path }) => type !== "network" && (path ?? "") !== "" && path?.startsWith(`/proc/${podPid}/ns/`) !== true,
	);
	if (foreign !== undefined) {
		throw new ShimError(
			"spec.unsupported",
			`the ${asker} asks to join the ${foreign.type} namespace ${foreign.path}, which is none of its pod's: a VM can't share the host's`,
		);
	}
	for (const [type, name] of Object.entries(REQUIRED_NAMESPACES)) {
		if (!namespaces.some((namespace) => namespace.type === type)) {
			throw new ShimError("spec.unsupported", `the ${asker} asks for the ${name}: a VM has its own kernel and can't share the host's`);
		}
	}
	if (namespaces.some((namespace) => namespace.type === "user") || (spec.linux?.uidMappings ?? []).length > 0) {
		throw new ShimError("spec.unsupported", `the ${asker} asks for a user namespace: inside its own VM it gets none`, {
			remedy: "leave hostUsers at its default for this runtime class: the VM separates the pod from the host",
		});
	}
}

function guestNamespaces(spec: OciSpec, podPid: number): grpc.LinuxNamespace.$Properties[] {
	refuseHostNamespaces(spec, podPid);
	const namespaces = spec.linux?.namespaces ?? [];
	return namespaces.filter((namespace) => GUEST_NAMESPACES.has(namespace.type)).map((namespace) => ({ Type: namespace.type, Path: "" }));
}

const isBind = (mount: OciMount): boolean =>
	mount.type === "bind" || (mount.options ?? []).some((option) => option === "bind" || option === "rbind");

/** The bind mounts of a specification, in its order. */
export function bindMounts(spec: OciSpec): OciMount[] {
	return (spec.mounts ?? []).filter(isBind);
}

/** The bind mounts whose source lies on the host and must be brought into the VM first. */
export function hostBindMounts(spec: OciSpec): OciMount[] {
	return bindMounts(spec).filter((mount) => mount.destination !== SHM_PLACE);
}

/** Where a pod's shared memory is mounted. */
export const SHM_PLACE = "/dev/shm";
/** Options that let mounts of the node and of the container appear on the other side: a VM has its own. */
export const FOREIGN_PROPAGATION: ReadonlySet<string> = new Set(["shared", "rshared", "slave", "rslave"]);

function guestMount(mount: OciMount, context: GuestSpecContext): grpc.Mount.$Properties {
	const { destination } = mount;
	const options = mount.options ?? [];
	if (!isBind(mount)) return { destination, options, type: mount.type ?? "", source: mount.source ?? "" };
	const source = context.guestSources.get(destination);
	if (source !== undefined) {
		const own = options.filter((option) => !FOREIGN_PROPAGATION.has(option));
		return {
			destination,
			type: "bind",
			source: source.path,
			options: source.sub === undefined ? own : [...own, `X-snp.sub=${source.sub}`],
		};
	}
	if (destination === SHM_PLACE) return { destination, type: "bind", source: GUEST_SHM, options: ["rbind"] };
	throw new ShimError("spec.unsupported", `mount ${destination}: its source ${mount.source ?? ""} on the host is not shared with the VM`);
}

function guestSeccomp(spec: OciSpec): grpc.LinuxSeccomp.$Properties | undefined {
	const seccomp = spec.linux?.seccomp;
	if (!seccomp) return undefined;
	return {
		DefaultAction: seccomp.defaultAction,
		Architectures: seccomp.architectures ?? [],
		Flags: seccomp.flags ?? [],
		Syscalls: (seccomp.syscalls ?? []).map((rule) => ({
			Names: rule.names,
			Action: rule.action,
			...(rule.errnoRet != null ? { errnoret: rule.errnoRet } : {}),
			Args: (rule.args ?? []).map((arg) => ({
				Index: unsigned64(arg.index),
				Value: unsigned64(arg.value),
				ValueTwo: unsigned64(arg.valueTwo ?? 0),
				Op: arg.op,
			})),
		})),
	};
}

/**
 * Converts a whole specification.
 * @throws ShimError `spec.unsupported` that names what a VM can't give
 */
export function guestSpec(spec: OciSpec, context: GuestSpecContext): grpc.Spec.$Properties {
	const seccomp = context.seccomp ? guestSeccomp(spec) : undefined;
	return {
		Version: spec.ociVersion,
		Process: guestProcess(spec.process),
		Root: { Path: guestRootfs(context.containerId), Readonly: spec.root.readonly ?? false },
		Hostname: spec.hostname ?? "",
		Mounts: (spec.mounts ?? []).map((mount) => guestMount(mount, context)),
		Annotations: {
			...(spec.annotations ?? {}),
			"io.katacontainers.pkg.oci.container_type": context.sandbox ? "pod_sandbox" : "pod_container",
			"io.katacontainers.pkg.oci.bundle_path": `/run/kata-containers/${context.containerId}`,
		},
		Linux: {
			Sysctl: { ...context.podSysctls, ...spec.linux?.sysctl },
			Resources: guestResources(spec.linux?.resources ?? {}, context),
			CgroupsPath: `/snp/${context.containerId}`,
			Namespaces: guestNamespaces(spec, context.podPid),
			Devices: guestDevices(spec, context.disks ?? new Set()),
			...(seccomp ? { Seccomp: seccomp } : {}),
			MaskedPaths: spec.linux?.maskedPaths ?? [],
			ReadonlyPaths: spec.linux?.readonlyPaths ?? [],
			RootfsPropagation: "",
		},
	};
}
