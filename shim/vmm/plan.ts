/** From what a pod needs to the configuration of its VM, and from the VMM's answers to what the guest is told: no I/O here. */

import type { DeviceNode, VmInfo } from "./api-types.ts";
import type { LandlockConfig, VmConfig } from "./config-types.ts";

const BYTES_PER_MIB = 1024 * 1024;

/** A disk of the VM. */
export interface DiskSpec {
	/** Unique in the VM; not beginning with `_`. */
	readonly id: string;
	readonly path: string;
	readonly readonly: boolean;
	/** At most 20 bytes; the guest sees it in `/sys/block/<name>/serial`. */
	readonly serial?: string | undefined;
	/** The PCI segment that it is plugged into; the first unless given. */
	readonly segment?: number | undefined;
}

/** What a VM is to be. */
export interface VmSpec {
	readonly vcpus: number;
	/** What `vm.resize` may go up to; `vcpus` unless given. */
	readonly maxVcpus?: number | undefined;
	readonly memoryMiB: number;
	/** What `vm.resize` may add, a multiple of 128 MiB (Cloud Hypervisor's step); none unless given. */
	readonly hotplugMemoryMiB?: number | undefined;
	/** Memory that vhost-user devices can map; false unless given. */
	readonly sharedMemory?: boolean | undefined;
	readonly kernelPath: string;
	readonly initramfsPath?: string | undefined;
	readonly cmdline: string;
	readonly disks: readonly DiskSpec[];
	readonly vsock: { readonly cid: number; readonly socketPath: string };
	/** A balloon of size 0, with what it may do. */
	readonly balloon?: { readonly deflateOnOom?: boolean; readonly freePageReporting?: boolean } | undefined;
	/** Where the guest's serial console is written to; it is off unless given. */
	readonly serialFile?: string | undefined;
	/** PCI segments, each with room for 31 devices; one unless given. */
	readonly pciSegments?: number | undefined;
	/** SEV-SNP: the VM starts from this IGVM file, and its reports show these 64 hexadecimal digits as HOST_DATA. */
	readonly snp?: { readonly igvmPath: string; readonly hostData: string } | undefined;
	/** Landlock is on when there are rules: the only paths that the VMM may reach from boot on. */
	readonly landlockRules?: readonly LandlockConfig[] | undefined;
}

/** The VMM takes any 64 characters, and dies of those that are no digits when it boots. */
const HOST_DATA = /^[0-9a-f]{64}$/u;

/**
 * What the guest's first code gets through fw_cfg. Only with `kernel` and `cmdline` said here does Cloud Hypervisor put the hashes of kernel, initramfs and
 * command line among what is measured (v53, vmm/src/vm.rs `load_payload`).
 */
const MEASURED_FILES = { e820: true, kernel: true, cmdline: true, initramfs: true, acpi_tables: true } as const;

/** Makes the body of `vm.create`. The console is off: its default is the VMM's own standard output. */
export function planVm(spec: VmSpec): VmConfig {
	const config: VmConfig = {
		payload: { kernel: spec.kernelPath, cmdline: spec.cmdline },
		cpus: { boot_vcpus: spec.vcpus, max_vcpus: Math.max(spec.vcpus, spec.maxVcpus ?? spec.vcpus) },
		memory: planMemory(spec),
		rng: { src: "/dev/urandom" },
		vsock: { cid: spec.vsock.cid, socket: spec.vsock.socketPath },
		serial: spec.serialFile === undefined ? { mode: "Null" } : { mode: "File", file: spec.serialFile },
		console: { mode: "Off" },
	};
	if (spec.initramfsPath !== undefined) config.payload.initramfs = spec.initramfsPath;
	if (spec.disks.length > 0) config.disks = spec.disks.map(planDisk);
	if (spec.balloon !== undefined) {
		config.balloon = {
			size: 0,
			deflate_on_oom: spec.balloon.deflateOnOom ?? false,
			free_page_reporting: spec.balloon.freePageReporting ?? false,
		};
	}
	if (spec.pciSegments !== undefined && spec.pciSegments > 1) config.platform = { num_pci_segments: spec.pciSegments };
	if (spec.snp !== undefined) {
		if (!HOST_DATA.test(spec.snp.hostData))
			throw new TypeError(`HOST_DATA ${JSON.stringify(spec.snp.hostData)} is not of 64 hexadecimal digits`);
		config.platform = { ...config.platform, sev_snp: true };
		Object.assign(config.payload, { igvm: spec.snp.igvmPath, host_data: spec.snp.hostData, fw_cfg_config: { ...MEASURED_FILES } });
	}
	if (spec.landlockRules !== undefined) {
		config.landlock_enable = true;
		config.landlock_rules = spec.landlockRules.map((rule) => ({ ...rule }));
	}
	return config;
}

function planMemory(spec: VmSpec): NonNullable<VmConfig["memory"]> {
	const more = spec.hotplugMemoryMiB ?? 0;
	const memory = { size: spec.memoryMiB * BYTES_PER_MIB, shared: spec.sharedMemory ?? false };
	return more > 0 ? { ...memory, hotplug_size: more * BYTES_PER_MIB } : memory;
}

/**
 * Makes the body of `vm.add-disk`. The kind of image is named, so that the VMM never guesses it from what a guest may have written.
 * A read-only disk asks for no holes, which the VMM could not give it and would log.
 */
export function planDisk(disk: DiskSpec): NonNullable<VmConfig["disks"]>[number] {
	const config = { id: disk.id, path: disk.path, readonly: disk.readonly, sparse: !disk.readonly, image_type: "Raw" as const };
	return {
		...config,
		...(disk.serial === undefined ? {} : { serial: disk.serial }),
		...(disk.segment === undefined || disk.segment === 0 ? {} : { pci_segment: disk.segment }),
	};
}

/** The slot of a PCI address: `0000:00:1f.0` gives `1f`, undefined when it is no such address. */
export function slotOfBdf(bdf: string): string | undefined {
	return /^[0-9a-f]{4}:[0-9a-f]{2}:([0-9a-f]{2})\.[0-7]$/i.exec(bdf)?.[1]?.toLowerCase();
}

/** The PCI address of a disk (`0000:00:1f.0`), from `vm.info` of a booted VM; undefined when it is not there. */
export function diskAddress(info: VmInfo, diskId: string): string | undefined {
	const tree = info.device_tree ?? {};
	// The address stands on the PCI function that carries the device.
	const carrier = nodeAt(tree, nodeAt(tree, diskId)?.parent) ?? nodeAt(tree, diskId);
	return carrier?.pci_bdf;
}

function nodeAt(tree: NonNullable<VmInfo["device_tree"]>, id: string | undefined): DeviceNode | undefined {
	return id !== undefined && Object.hasOwn(tree, id) ? tree[id] : undefined;
}
