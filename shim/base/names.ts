/** Paths, ports and names that this program shares with the keeper and the guest agent: the facts of `docs/contracts.md`. */

import { createHash } from "node:crypto";
import { join } from "node:path";

/** The runtime's name in containerd's configuration. */
export const RUNTIME_NAME = "io.containerd.snp.v2";

/** vsock ports of the guest agent (Kata agent protocol for the first two). */
export const AGENT_PORT = 1024;
export const AGENT_LOG_PORT = 1025;
export const STREAM_PORT = 1028;
export const FORWARD_PORT = 1029;
/** vsock port of the host to which our agent connects when its own port is open. */
export const READY_PORT = 1030;

/** What our agent says in `GetGuestDetails.extra_features` when it takes streams by token. */
export const STREAMS_CAPABILITY = "snp.streams.v1";
/** ... and when it takes files of cgroup version 2 by name, and lists of processors that may not be the guest's. */
export const LIMITS_CAPABILITY = "snp.limits.v1";
/** ... and when it gives files back. */
export const FILES_CAPABILITY = "snp.files.v1";
/** ... and when it changes files of volumes in place, and takes `X-snp.sub` of bind mounts. */
export const VOLUMES_CAPABILITY = "snp.volumes.v1";
/** ... and when its file calls, from whatever host, stay out of what the guest itself makes and mounts: volumes of that kind lie apart then. */
export const MOUNTS_CAPABILITY = "snp.mounts.v1";

/** ... and when it reserves huge pages for as long as a container is there. */
export const HUGE_PAGES_CAPABILITY = "snp.hugepages.v1";

/** What it says when it finds disks by whole PCI addresses. */
export const PCI_CAPABILITY = "snp.pci.v1";

/** What it says when it opens layers of a partitioned disk through dm-verity. */
export const VERITY_CAPABILITY = "snp.verity.v1";

/** What it says when it makes encrypted file systems on disks, also while the host goes on, and puts writable layers there. */
export const SCRATCH_CAPABILITY = "snp.scratch.v1";

/** What it says when it tells what the host changed of the guest's disks. */
export const DAMAGE_CAPABILITY = "snp.damage.v1";

/** What it says when a guest of its that waits takes its pod's policy later (docs/adr/0012). */
export const LATE_BINDING_CAPABILITY = "snp.late-binding.v1";

/** What it says when it takes connections to ports of the guest's loopback. */
export const FORWARD_CAPABILITY = "snp.forward.v1";

/** The default of `state_dir`, and the longest that keeps every socket below the 107 bytes of `sun_path` (unix(7)). */
export const DEFAULT_STATE_DIR = "/run/containerd-shim-snp";
export const MAX_STATE_DIR_BYTES = 48;

/** Where CSI drivers tell of direct-assigned volumes (Kata Containers, direct block device assignment). */
export const DIRECT_VOLUMES_DIR = "/run/kata-containers/shared/direct-volumes";

/** The most virtual CPUs that the guest's kernel brings up: CONFIG_NR_CPUS in `guest/kernel/fragment.config`. */
export const MAX_GUEST_VCPUS = 64;

/** The control group of VMs that are booted ahead, each in a group of its own. */
export const POOL_CGROUP = "/containerd-shim-snp-pool";

/** The default configuration file. */
export const DEFAULT_CONFIG_FILE = "/etc/containerd-shim-snp/config.toml";
export const CONFIG_FILE_VARIABLE = "CONTAINERD_SHIM_SNP_CONFIG";

/** A pod's key: 32 hexadecimal digits that are unique among all containerds of a node. */
export function podKey(containerdAddress: string, namespace: string, podId: string): string {
	return createHash("sha256").update(`${containerdAddress}\0${namespace}\0${podId}`).digest("hex").slice(0, 32);
}

/** The folder in which snpd keeps a pod's journal and sockets. */
export function podFolder(stateDir: string, key: string): string {
	return join(stateDir, "p", key);
}

/** The folder of VMs that are booted ahead, each in a folder of its own. */
export function poolFolder(stateDir: string): string {
	return join(stateDir, "w");
}

/** The folder of templates that VMs are restored from, each in a folder of its own. */
export function templatesFolder(stateDir: string): string {
	return join(stateDir, "t");
}

/** The listening socket of a pod's keeper. */
export function keeperSocket(stateDir: string, key: string): string {
	return join(stateDir, "k", `${key}.sock`);
}

/** snpd's listening socket. */
export function daemonSocket(stateDir: string): string {
	return join(stateDir, "snpd.sock");
}
