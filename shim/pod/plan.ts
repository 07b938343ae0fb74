/** The plan of a pod: everything that its boot needs, decided from the bundle and the configuration before anything is acquired. Pure. */

import { basename, join } from "node:path";

import type { OciSpec, PodSpec } from "../agent/oci-spec.ts";
import type { Config } from "../config/schema.ts";
import { cgroupPath } from "../host/cgroups.ts";
import { chooseNetwork } from "../network/choice.ts";
import type { NetworkChoice } from "../network/choice.ts";
import type { LandlockConfig } from "../vmm/config-types.ts";
import { planConfidential } from "./confidential.ts";
import type { ConfidentialPlan } from "./confidential.ts";
import { mostOf, sizeOf } from "./sizing.ts";
import type { MachineSize } from "./sizing.ts";

/** What the VM will be. Paths are on the host. */
export interface PodPlan {
	readonly hypervisorPath: string;
	readonly kernel: string;
	readonly image: string;
	readonly kernelParameters: string;
	readonly vcpus: number;
	readonly memoryMib: number;
	/** What the VM may grow to while it runs. */
	readonly most: MachineSize;
	/** Other processes of the host may map its memory: for shared folders. */
	readonly sharedMemory: boolean;
	/** It has a balloon, and tells of pages that it frees. */
	readonly balloon: boolean;
	/** PCI segments that it has for disks. */
	readonly pciSegments: number;
	readonly hostname: string;
	/** Where `linux.cgroupsPath` puts the pod; empty for nowhere. */
	readonly cgroupsPath: string;
	readonly network: NetworkChoice;
	/** The VM's hybrid vsock socket. */
	readonly vsock: string;
	/** The guest's context id: each VM has a socket of its own, so one number serves all. */
	readonly vsockCid: number;
	/** Where the guest's serial console goes; undefined: nowhere. */
	readonly consoleFile: string | undefined;
	/** The file of the pod's writable disk, and its size; undefined when what is written stays in memory. */
	readonly scratch: { readonly path: string; readonly maxBytes: number } | undefined;
	/** What keeps the pod from its node; undefined for an ordinary pod. */
	readonly confidential: ConfidentialPlan | undefined;
	/** What the VMM may reach beside the files that its configuration names, by Landlock; undefined: everything. */
	readonly landlockRules: readonly LandlockConfig[] | undefined;
}

/** The host name's longest form in bytes (Linux, sethostname(2)). */
const MAX_HOSTNAME = 64;
/** As much of an id as other runtimes show. */
const DEFAULT_HOSTNAME = 12;
const GUEST_CID = 3;
const BYTES_PER_MIB = 1024 * 1024;

/** Parameters that every guest gets: end at once on a panic, so that a dead guest is a dead VM; no emulated probing. */
const BASE_PARAMETERS = [
	"reboot=t",
	"panic=-1",
	"tsc=reliable",
	"no_timer_check",
	"cryptomgr.notests",
	"random.trust_cpu=on",
	"8250.nr_uarts=1",
];

/** Names of a container's part in the pod (containerd's CRI annotations). */
export const CONTAINER_TYPE_ANNOTATION = "io.kubernetes.cri.container-type";

/** True when the bundle is a Kubernetes pod's sandbox container. */
export function isSandboxContainer(spec: OciSpec): boolean {
	return spec.annotations?.[CONTAINER_TYPE_ANNOTATION] === "sandbox";
}

/**
 * Decides what the pod's VM will be.
 * @param folder the pod's
 * @param node what the node has
 * @throws ShimError `pod.too-large`; `spec.invalid` for a control group that leads out; `network.unsupported` for a pod in the host's network; `confidential.annotation`, `confidential.initdata`, `initdata.invalid`
 */
export function planPod(podId: string, spec: PodSpec, config: Config, folder: string, node: MachineSize): PodPlan {
	const size = sizeOf(podId, spec, { vcpus: config.guest.vcpus, memoryMib: config.guest.memory_mib }, node);
	const console = config.debug.console;
	const cgroupsPath = spec.linux?.cgroupsPath ?? "";
	// Refused before anything is taken or made for the pod.
	if (cgroupsPath !== "") cgroupPath(cgroupsPath);
	const confidential = planConfidential(podId, spec.annotations ?? {}, config, size.vcpus);
	return {
		hypervisorPath: config.hypervisor.path,
		kernel: confidential?.mode === "snp" ? config.confidential.kernel : config.guest.kernel,
		image: confidential?.mode === "sample" ? config.confidential.sample_image : config.guest.image,
		kernelParameters: kernelParameters(config),
		...size,
		most: mostOf(size, { vcpus: config.guest.max_vcpus, memoryMib: config.guest.hotplug_memory_mib }),
		sharedMemory: config.storage.share_folders,
		// What an encrypted guest gives up stays with the VM: a balloon would only take from it.
		balloon: config.memory.reclaim !== "off" && confidential === undefined,
		pciSegments: config.guest.pci_segments,
		hostname: hostnameOf(podId, spec),
		cgroupsPath,
		network: chooseNetwork(spec.linux?.namespaces ?? []),
		vsock: join(folder, "vsock.sock"),
		vsockCid: GUEST_CID,
		consoleFile: console ? join(folder, "console.log") : undefined,
		scratch:
			config.storage.scratch === "disk"
				? { path: join(config.storage.scratch_dir, `${basename(folder)}.img`), maxBytes: config.storage.scratch_mib * BYTES_PER_MIB }
				: undefined,
		confidential,
		// Disks that are plugged in later come from the cache of images.
		landlockRules: config.hypervisor.landlock
			? [
					{ path: folder, access: "rw" },
					{ path: config.storage.cache_dir, access: "r" },
				]
			: undefined,
	};
}

/** The guest kernel's command line: the configuration's alone, so that one measurement holds for all pods of a size. */
export function kernelParameters({ debug, log, guest }: Config): string {
	const parameters = [...BASE_PARAMETERS, debug.console ? "console=ttyS0" : "quiet", `agent.log=${log.level}`];
	return [...parameters, ...splitParameters(guest.kernel_parameters)].join(" ");
}

/** A pod that names no host name gets its id's beginning: "(none)" or the node's name would mislead. */
function hostnameOf(podId: string, spec: PodSpec): string {
	const name = spec.hostname ?? "";
	return name === "" ? podId.replaceAll(/[^A-Za-z0-9.-]/gu, "-").slice(0, DEFAULT_HOSTNAME) : name.slice(0, MAX_HOSTNAME);
}

function splitParameters(parameters: string): string[] {
	return parameters.split(/\s+/u).filter((parameter) => parameter !== "");
}
