/**
 * What Cloud Hypervisor's REST API takes and gives, endpoint by endpoint (v53). Sizes are bytes, times as named.
 * The configuration of a VM and its devices is in `config-types.ts`.
 */

import type { MemoryZoneUpdate, VmConfig } from "./config-types.ts";

/** Answer of `vmm.ping`. */
export interface VmmPingResponse {
	readonly version: string;
	readonly build_version?: string;
	readonly pid?: number;
	/** Compile-time features of the program: `kvm`, `sev_snp`, `igvm`... */
	readonly features?: readonly string[];
}

/** Where a VM is in its life; `Shutdown` is no longer reported by v53, which falls back to `Created`. */
export type VmState = "Created" | "Running" | "Shutdown" | "Paused" | "BreakPoint";

/** Answer of `vm.info`. */
export interface VmInfo {
	/** The configuration as the VMM holds it: absent fields are filled in, unknown ones were dropped. */
	readonly config: VmConfig;
	readonly state: VmState;
	/** Memory that the guest has now: configured, plus hot-plugged, minus the balloon. */
	readonly memory_actual_size?: number;
	/** Every device by its id, present once the VM was booted. */
	readonly device_tree?: Readonly<Record<string, DeviceNode>>;
}

/** One device, or the PCI function that carries it (`_virtio-pci-<id>`). */
export interface DeviceNode {
	readonly id?: string;
	readonly resources?: readonly Readonly<Record<string, unknown>>[];
	/** Id of the PCI function that carries this device. */
	readonly parent?: string;
	readonly children?: readonly string[];
	/** PCI address: `0000:00:03.0`. */
	readonly pci_bdf?: string;
}

/** Answer of `vm.counters`: device id -> counter -> value, up to 2^64-1. */
export type VmCounters = Readonly<Record<string, Readonly<Record<string, bigint>>>>;

/** Answer of the `vm.add-*` endpoints while the VM runs. */
export interface PciDeviceInfo {
	readonly id: string;
	/** PCI address: `0000:00:03.0`. */
	readonly bdf: string;
}

/** Request of `vm.resize`: what is absent stays as it is. */
export interface VmResize {
	desired_vcpus?: number;
	desired_ram?: number;
	desired_balloon?: number;
}

/** Request of `vm.resize-disk`. */
export interface VmResizeDisk {
	id?: string;
	desired_size?: number;
}

/** Request of `vm.resize-zone`. */
export interface VmResizeZone {
	id?: string;
	desired_ram?: number;
}

/** Request of `vm.remove-device`. */
export interface VmRemoveDevice {
	id?: string;
}

/** Request of `vm.add-user-device`. */
export interface VmAddUserDevice {
	socket: string;
	pci_segment?: number;
	pci_device_id?: number;
}

/** Request of `vm.snapshot`: `file:///an/existing/folder`. */
export interface VmSnapshotConfig {
	destination_url?: string;
}

/** Request of `vm.coredump` (only in builds with `guest_debug`). */
export interface VmCoredumpData {
	destination_url?: string;
}

/** How `vm.restore` brings memory back: all at once, or page by page when touched. */
export type MemoryRestoreMode = "Copy" | "OnDemand";

/** Request of `vm.restore`. */
export interface RestoreConfig {
	source_url: string;
	prefault?: boolean;
	memory_restore_mode?: MemoryRestoreMode;
	resume?: boolean;
	zone_updates?: MemoryZoneUpdate[];
}

/** When a migration moves memory: before or after the switch. */
export type MigrationMode = "Precopy" | "Postcopy";

/** Request of `vm.receive-migration`. */
export interface ReceiveMigrationData {
	receiver_url: string;
	tls_dir?: string;
	memory_mode?: MigrationMode;
	zone_updates?: MemoryZoneUpdate[];
}

/** What a migration does when its time is up. */
export type TimeoutStrategy = "Cancel" | "Ignore";

/** Request of `vm.send-migration`. */
export interface SendMigrationData {
	destination_url: string;
	local?: boolean;
	downtime_ms?: number;
	timeout_s?: number;
	timeout_strategy?: TimeoutStrategy;
	connections?: number;
	tls_dir?: string;
	memory_mode?: MigrationMode;
}
