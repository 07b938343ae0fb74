/**
 * The configuration: every key with its type, default, bounds and documentation. Types, validation, `deploy/config.toml` and
 * `docs/config.md` come from here. Units are in the keys' names.
 */

import * as v from "valibot";
import { LOG_LEVELS } from "../base/log.ts";
import { DEFAULT_STATE_DIR, MAX_GUEST_VCPUS, MAX_STATE_DIR_BYTES } from "../base/names.ts";
import { choice, flag, integer, line, milliseconds, path, program } from "./keys.ts";

/** A table of keys, or of tables. All its parts have defaults, so it may be left out. */
function table<Entries extends v.ObjectEntries>(doc: string, entries: Entries) {
	const nothing = {} as v.InferInput<v.StrictObjectSchema<Entries, undefined>>;
	return v.optional(v.pipe(v.strictObject(entries), v.metadata({ doc })), nothing);
}

/** The whole file. */
export const ConfigSchema = v.strictObject({
	state_dir: path(
		DEFAULT_STATE_DIR,
		"Folder for sockets, journals and the VMs' files; it belongs on a tmpfs. Several instances live side by side when each has its own. It must stand at the top of the main file: drop-ins can't set it.",
		MAX_STATE_DIR_BYTES,
	),
	hypervisor: table("The virtual machine monitor.", {
		path: path("/usr/bin/cloud-hypervisor", "The cloud-hypervisor program, or one that takes the same arguments and serves the same API."),
		seccomp: flag(true, "Whether the VMM restricts its own system calls. Turn it off only to find a fault."),
		landlock: flag(
			false,
			"Whether the VMM restricts the files that it can open (needs Linux 6.2 with Landlock, and Cloud Hypervisor itself: an emulator ignores it).",
		),
		log_level: choice("warn", ["warn", "info", "debug"], "How much the VMM writes to its log in the pod's folder."),
	}),
	guest: table("What every pod's VM is made of.", {
		kernel: path("/usr/share/containerd-shim-snp/vmlinux", "The guest's kernel, an ELF file with a PVH note."),
		image: path("/usr/share/containerd-shim-snp/initramfs", "The guest's initramfs, which holds the agent."),
		kernel_parameters: line("", "Parameters that are added to the guest kernel's command line, separated by spaces."),
		vcpus: integer(
			1,
			{ min: 1, max: MAX_GUEST_VCPUS },
			"Virtual CPUs that a pod has at least; one whose containers have a limit gets as many as that needs, up to the node's and to what the guest's kernel has room for (CONFIG_NR_CPUS).",
		),
		memory_mib: integer(
			256,
			{ min: 128, max: 1_048_576, unit: "MiB" },
			"Memory of a pod beside what its containers' limits come to: for the guest's kernel, and for containers without a limit. Writable layers count as well.",
		),
		max_vcpus: integer(
			0,
			{ min: 0, max: MAX_GUEST_VCPUS },
			"Virtual CPUs that a running pod may grow to when its containers' limits are raised; 0: as many as at its start.",
		),
		hotplug_memory_mib: integer(
			0,
			{ min: 0, max: 1_048_576, unit: "MiB" },
			"Memory that a running pod may grow by, in steps of 128 MiB, when its containers' limits are raised; 0: none.",
		),
		pci_segments: integer(
			2,
			{ min: 1, max: 16 },
			"PCI segments of a pod's VM. Each has room for 31 devices; the first also for the VM's own and the network's. Containers of one pod that use the same image share a disk, so a pod needs one for each of its images, and one for each block volume.",
		),
	}),
	confidential: table(
		"Confidential pods (see docs/confidential.md): give them a runtime class of its own, with a configuration file of its own. No annotation changes what stands here.",
		{
			mode: choice(
				"off",
				["off", "snp", "sample"],
				'With "snp" every pod\'s memory is encrypted by the processor (SEV-SNP), and its guest obeys only the policy that the pod brings; a pod is refused where that can\'t be had. "sample" is the same without SNP and with published keys, for trials. It is INSECURE.',
			),
			igvm: path(
				"/usr/share/containerd-shim-snp/guest.igvm",
				"With snp: the IGVM file that the VM starts from. Guest policy and ID block are in it. {vcpus} in its name stands for the number of the pod's processors: an ID block is for one number.",
			),
			kernel: path(
				"/usr/share/containerd-shim-snp/bzImage",
				"With snp: the guest's kernel, in place of guest.kernel; a bzImage, which is what the first code in the VM loads.",
			),
			sample_image: path(
				"/usr/share/containerd-shim-snp/initramfs-sample-insecure",
				"With sample: the guest's initramfs, in place of guest.image.",
			),
		},
	),
	memory: table("What pods give back of their memory (see docs/memory.md).", {
		reclaim: choice(
			"balloon",
			["balloon", "reporting", "off"],
			'With "reporting" a guest gives back pages that it frees, by itself and within seconds. With "balloon" it does that, and idle pods give up caches as well when the node is short of memory. "off": a pod keeps what it has once touched. Confidential pods keep theirs in any case.',
		),
		reserve_mib: integer(
			512,
			{ min: 16, max: 1_048_576, unit: "MiB" },
			"Memory that shall stay available: with less, VMs that wait for pods are ended, then idle pods give up caches. It holds for the node, for memory.budget_mib and for every control group above a pod that has a limit, but for at most an eighth of each. Only the main configuration's counts.",
		),
		budget_mib: integer(
			0,
			{ min: 0, max: 1_073_741_824, unit: "MiB" },
			"Memory that the VMs of this node shall hold together at most; nearer to it than memory.reserve_mib counts as being short of memory. No pod is refused or ended for it. 0: what the node has. Only the main configuration's counts.",
		),
		floor_mib: integer(
			128,
			{ min: 64, max: 1_048_576, unit: "MiB" },
			"Memory that a pod's VM keeps in any case. A guest that needs more gets it back at once.",
		),
	}),
	storage: table("Images of the containers' layers, and volumes.", {
		cache_dir: path(
			"/var/cache/containerd-shim-snp",
			"Folder for the file system images that are built from snapshots, shared by all pods.",
		),
		cache_max_mib: integer(
			20_480,
			{ min: 0, max: 1_073_741_824, unit: "MiB" },
			"Size above which images that no pod uses are removed, the longest unused first.",
		),
		copy_max_mib: integer(
			64,
			{ min: 0, max: 1_048_576, unit: "MiB" },
			"Largest file or folder of the node that is copied into a VM as a volume (hostPath and its like; see docs/volumes.md). The copy takes the VM's memory: see guest.memory_mib.",
		),
		copy_max_entries: integer(
			10_000,
			{ min: 1, max: 1_000_000 },
			"Most files, folders and links that a folder may have which is copied into a VM as a volume.",
		),
		layers: flag(
			true,
			"Whether a container gets its image's layers one by one, each under dm-verity with a root hash that follows from the image alone (needs a guest agent that can do it; see docs/images.md). Otherwise, and where an image's layers can't be known, they are flattened into one image without such a hash.",
		),
		prepare_pulled: flag(
			false,
			"Whether the layers of every image that containerd pulls are converted at once, and not with the first pod of the image (with storage.layers; from the first pod of a containerd on).",
		),
		scratch: choice(
			"disk",
			["disk", "memory"],
			"Where what containers write goes, in their own file systems and in emptyDirs: to files of the node (one for each pod and one for each emptyDir) that the guest encrypts with a key of its own and checks at each read, or to the VM's memory (see guest.memory_mib). A guest agent that can't do the first uses memory.",
		),
		scratch_dir: path(
			"/var/lib/containerd-shim-snp",
			"Folder of the pods' files, on a disk of the node. They are sparse, have no name while the VM runs, and give space back when something is deleted in the guest.",
		),
		scratch_mib: integer(
			20_480,
			{ min: 256, max: 1_073_741_824, unit: "MiB" },
			"Size of such a disk, at most that of the file system that it is on. It takes no more of the node than what is written.",
		),
		empty_dir_mib: integer(
			20_480,
			{ min: 256, max: 1_073_741_824, unit: "MiB" },
			"Size of an emptyDir's disk that has no smaller limit, at most that of the file system that kubelet's folder for it is on. Its file lies in that folder, where kubelet counts what is written (see docs/volumes.md).",
		),
		share_folders: flag(
			false,
			"Whether folders of the node (hostPath, local volumes, and persistent volumes that the node has mounted) are shared with the VM by virtio-fs, live and writable, instead of copied or refused (see docs/volumes.md). The node's virtiofsd then answers whatever the VM asks of these folders, and the VM's memory is shared with it: not for pods that shall be safe from their node.",
		),
		virtiofsd: program("/usr/libexec/virtiofsd", "The virtiofsd program; used only with share_folders."),
		mkfs_erofs: program("mkfs.erofs", "The mkfs.erofs program (erofs-utils 1.5 or later)."),
	}),
	pool: table(
		"VMs that are booted before a pod asks for one (see docs/pool.md): a pod that finds one of its kind starts without a boot. Confidential pods have their policy bound later then, and their evidence says so (docs/confidential.md).",
		{
			size: integer(
				0,
				{ min: 0, max: 256 },
				"VMs that are kept ready in any case, of the kinds that the latest pods asked for; until pods with limits come, for pods without. 0: none.",
			),
			max: integer(
				0,
				{ min: 0, max: 256 },
				"VMs that are kept ready at most: beyond pool.size, one for each pod of the last ten minutes. Less than pool.size means pool.size.",
			),
			memory_mib: integer(
				2_048,
				{ min: 128, max: 1_048_576, unit: "MiB" },
				"Memory that all VMs of the node that wait may have when one is booted for this configuration, their hypervisors not counted, those for other configurations and those that are just ending included. VMs for which there is no room are not booted.",
			),
		},
	),
	snapshots: table(
		"Templates: a VM that was booted once, with nothing of a pod in it, is kept as a snapshot, and VMs of its kind start as copies of it (see docs/snapshots.md). Not for confidential pods.",
		{
			enabled: flag(
				false,
				"Whether VMs start from templates. Copies of one template have the addresses of their kernel in common, and what else it drew at random before it was one.",
			),
			max_mib: integer(
				1_024,
				{ min: 64, max: 1_048_576, unit: "MiB" },
				"Room that templates may take in state_dir, a part of the memory of a VM for each kind of VM; those that were not used for the longest time go first.",
			),
			paging: choice(
				"copy",
				["copy", "on-demand"],
				'How a template\'s memory comes into a VM. "copy": what the template used, before the VM runs. "on-demand": page by page as the VM touches it (userfaultfd); Cloud Hypervisor v53 then fetches the rest of the VM\'s memory in the background, used or not. Where the VMM refuses it, memory is copied.',
			),
		},
	),
	timeouts: table("How long the shim waits before it calls a step failed.", {
		boot_ms: milliseconds(60_000, 100, "From the start of the VM until its agent answers."),
		agent_call_ms: milliseconds(30_000, 100, "For one answer of the guest's agent. Waiting for a process to end has no limit."),
		vmm_call_ms: milliseconds(30_000, 100, "For one answer of the VMM."),
		image_build_ms: milliseconds(600_000, 1_000, "For building the image of one layer."),
		stdio_drain_ms: milliseconds(
			5_000,
			0,
			"How long the end of a process is held back for its last output. When a reader has its FIFO open and takes something at least once a minute (after SIGKILL: in this time, for a minute), the end waits on; what is left when it is told goes on to its reader, but a client that closes its FIFOs then, as containerd 2's does, loses it. With 0 nothing is waited for.",
		),
	}),
	log: table("snpd's own log.", {
		level: choice("info", LOG_LEVELS, "Least important level that is written."),
	}),
	debug: table("Aids for finding faults. They cost time or tell what should stay secret.", {
		console: flag(false, "Whether the guest's console is kept in `console.log` in the pod's folder. It makes the start slower."),
		requests: flag(
			false,
			"Whether every request to the guest is kept in `requests.jsonl` in the pod's folder, up to 4 MiB, until snpd ends: `snpctl policy check --requests` tries a policy with them. They hold the containers' environment, secrets included.",
		),
	}),
});

type DeepReadonly<T> = T extends object ? { readonly [Key in keyof T]: DeepReadonly<T[Key]> } : T;

/** A valid configuration: plain data, frozen. */
export type Config = DeepReadonly<v.InferOutput<typeof ConfigSchema>>;

/** The configuration of an empty file. */
export function defaultConfig(): Config {
	return freeze(v.parse(ConfigSchema, {}));
}

/** Freezes plain data all the way down. */
export function freeze<T>(value: T): DeepReadonly<T> {
	if (typeof value === "object" && value !== null) {
		for (const part of Object.values(value)) freeze(part);
		Object.freeze(value);
	}
	return value as DeepReadonly<T>;
}
