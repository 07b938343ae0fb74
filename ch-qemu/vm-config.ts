/**
 * The configuration of a VM as the API carries it: types for the program, tables for the decoder.
 *
 * Field names, defaults and the order in `vm.info` are Cloud Hypervisor's (v53). Structures that a stand-in never looks into are taken as they come.
 */
import {
	ANY,
	arrayOf,
	BOOLEAN,
	DESCRIPTOR,
	enumOf,
	type Field,
	type Kind,
	MAC,
	STRING,
	type Struct,
	structOf,
	U16,
	U32,
	U64,
	U8,
	USIZE,
} from "./schema.ts";

export type ConsoleMode = "Off" | "Pty" | "Tty" | "File" | "Socket" | "Null";

/** What every PCI device may have. `pci_device_id` pins the slot. */
export type PciCommon = { id?: string; iommu?: boolean; pci_segment: number; pci_device_id?: number };

export type DiskConfig = PciCommon & {
	path?: string;
	readonly: boolean;
	direct: boolean;
	num_queues: number;
	queue_size: number;
	vhost_user: boolean;
	vhost_socket?: string;
	disable_io_uring: boolean;
	disable_aio: boolean;
	serial?: string;
	backing_files: boolean;
	sparse: boolean;
	image_type: string;
	lock_granularity: string;
};
export type NetConfig = PciCommon & {
	tap?: string;
	ip?: string;
	mask?: string;
	mac?: string;
	host_mac?: string;
	mtu?: number;
	num_queues: number;
	queue_size: number;
	vhost_user: boolean;
	vhost_socket?: string;
	vhost_mode: string;
	fds?: number[];
	offload_tso: boolean;
	offload_ufo: boolean;
	offload_csum: boolean;
};
export type RngConfig = PciCommon & { src: string };
export type BalloonConfig = PciCommon & { size: number; deflate_on_oom: boolean; free_page_reporting: boolean };
export type VsockConfig = PciCommon & { cid: number; socket: string };
export type RestoreConfig = { source_url: string; prefault: boolean; memory_restore_mode: "Copy" | "OnDemand"; resume: boolean };
export type PmemConfig = PciCommon & { file: string; size?: number; discard_writes: boolean };
export type FsConfig = PciCommon & { tag: string; socket: string; num_queues: number; queue_size: number };
export type ConsoleConfig = PciCommon & { file?: string; mode: ConsoleMode; socket?: string };
export type SerialConfig = { file?: string; mode: ConsoleMode; socket?: string };
export type CpusConfig = {
	boot_vcpus: number;
	max_vcpus: number;
	topology?: { threads_per_core: number; cores_per_die: number; dies_per_package: number; packages: number };
};
export type MemoryConfig = {
	size: number;
	mergeable: boolean;
	hotplug_method: "Acpi" | "VirtioMem";
	hotplug_size?: number;
	hotplugged_size?: number;
	shared: boolean;
	hugepages: boolean;
	hugepage_size?: number;
	prefault: boolean;
	zones?: { id: string; size: number }[];
	thp: boolean;
};
export type PayloadConfig = { firmware?: string; kernel?: string; cmdline?: string; initramfs?: string; igvm?: string; host_data?: string };
export type PlatformConfig = { num_pci_segments: number; sev_snp: boolean };

export type VmConfig = {
	cpus: CpusConfig;
	memory: MemoryConfig;
	payload?: PayloadConfig;
	disks?: DiskConfig[];
	net?: NetConfig[];
	rng: RngConfig;
	balloon?: BalloonConfig;
	fs?: FsConfig[];
	pmem?: PmemConfig[];
	serial: SerialConfig;
	console: ConsoleConfig;
	devices?: PciCommon[];
	vsock?: VsockConfig;
	pvpanic: boolean;
	watchdog: boolean;
	platform?: PlatformConfig;
};

const f = (name: string, kind: Kind, more: Partial<Field> = {}): Field => ({ name, kind, ...more });
const required = { required: true };
const off = { default: false };
const on = { default: true };

const PCI_COMMON: readonly Field[] = [
	f("id", STRING),
	f("iommu", BOOLEAN, { default: false, hideFalse: true }),
	f("pci_segment", U16, { default: 0 }),
	f("pci_device_id", U8),
];
const CONSOLE_MODE = enumOf("Off", "Pty", "Tty", "File", "Socket", "Null");
const CONSOLE_FIELDS: readonly Field[] = [f("file", STRING), f("mode", CONSOLE_MODE, required), f("socket", STRING)];

export const DISK: Struct = {
	name: "DiskConfig",
	fields: [
		...PCI_COMMON,
		f("path", STRING),
		f("readonly", BOOLEAN, off),
		f("direct", BOOLEAN, off),
		f("num_queues", USIZE, { default: 1 }),
		f("queue_size", U16, { default: 128 }),
		f("vhost_user", BOOLEAN, off),
		f("vhost_socket", STRING),
		f("rate_limit_group", STRING),
		f("rate_limiter_config", ANY),
		f("disable_io_uring", BOOLEAN, off),
		f("disable_aio", BOOLEAN, off),
		f("serial", STRING),
		f("queue_affinity", ANY),
		f("backing_files", BOOLEAN, off),
		f("sparse", BOOLEAN, on),
		f("image_type", enumOf("FixedVhd", "Qcow2", "Raw", "Vhdx", "Unknown"), { default: "Unknown" }),
		f("lock_granularity", enumOf("ByteRange", "Full"), { default: "ByteRange" }),
	],
};

export const NET: Struct = {
	name: "NetConfig",
	fields: [
		...PCI_COMMON,
		f("tap", STRING),
		f("ip", STRING),
		f("mask", STRING),
		f("mac", MAC),
		f("host_mac", MAC),
		f("mtu", U16),
		f("num_queues", USIZE, { default: 2 }),
		f("queue_size", U16, { default: 256 }),
		f("vhost_user", BOOLEAN, off),
		f("vhost_socket", STRING),
		f("vhost_mode", enumOf("Client", "Server"), { default: "Client" }),
		f("fds", arrayOf(DESCRIPTOR)),
		f("rate_limiter_config", ANY),
		f("offload_tso", BOOLEAN, on),
		f("offload_ufo", BOOLEAN, on),
		f("offload_csum", BOOLEAN, on),
	],
};

export const VSOCK: Struct = { name: "VsockConfig", fields: [...PCI_COMMON, f("cid", U32, required), f("socket", STRING, required)] };
export const FS: Struct = {
	name: "FsConfig",
	fields: [
		...PCI_COMMON,
		f("tag", STRING, required),
		f("socket", STRING, required),
		f("num_queues", USIZE, { default: 1 }),
		f("queue_size", U16, { default: 1024 }),
	],
};
export const PMEM: Struct = {
	name: "PmemConfig",
	fields: [...PCI_COMMON, f("file", STRING, required), f("size", U64), f("discard_writes", BOOLEAN, off)],
};
export const DEVICE: Struct = {
	name: "DeviceConfig",
	fields: [...PCI_COMMON, f("path", STRING), f("fd", DESCRIPTOR), f("x_nv_gpudirect_clique", U8), f("x_exclude_mmap_bars", arrayOf(U64))],
};
export const VDPA: Struct = {
	name: "VdpaConfig",
	fields: [...PCI_COMMON, f("path", STRING, required), f("num_queues", USIZE, { default: 1 })],
};
export const USER_DEVICE: Struct = { name: "UserDeviceConfig", fields: [...PCI_COMMON, f("socket", STRING, required)] };
export const GENERIC_VHOST_USER: Struct = {
	name: "GenericVhostUserConfig",
	fields: [...PCI_COMMON, f("socket", STRING, required), f("queue_sizes", arrayOf(U16), required), f("device_type", U32, required)],
};
export const RESIZE: Struct = { name: "VmResizeData", fields: [f("desired_vcpus", U32), f("desired_ram", U64), f("desired_balloon", U64)] };
export const RESIZE_DISK: Struct = { name: "VmResizeDiskData", fields: [f("id", STRING, required), f("desired_size", U64, required)] };
export const RESIZE_ZONE: Struct = { name: "VmResizeZoneData", fields: [f("id", STRING, required), f("desired_ram", U64, required)] };
export const REMOVE_DEVICE: Struct = { name: "VmRemoveDeviceData", fields: [f("id", STRING, required)] };
export const SNAPSHOT: Struct = { name: "VmSnapshotConfig", fields: [f("destination_url", STRING, required)] };
export const RESTORE: Struct = {
	name: "RestoreConfig",
	fields: [
		f("source_url", STRING, required),
		f("prefault", BOOLEAN, { default: false }),
		f("memory_restore_mode", enumOf("Copy", "OnDemand"), { default: "Copy" }),
		f("resume", BOOLEAN, { default: false }),
	],
};
export const SEND_MIGRATION: Struct = { name: "VmSendMigrationData", fields: [f("destination_url", STRING, required)] };
export const RECEIVE_MIGRATION: Struct = { name: "VmReceiveMigrationData", fields: [f("receiver_url", STRING, required)] };

const BALLOON: Struct = {
	name: "BalloonConfig",
	fields: [...PCI_COMMON, f("size", U64, required), f("deflate_on_oom", BOOLEAN, off), f("free_page_reporting", BOOLEAN, off)],
};
const RNG: Struct = { name: "RngConfig", fields: [...PCI_COMMON, f("src", STRING, required)] };
const SERIAL: Struct = { name: "SerialConfig", fields: CONSOLE_FIELDS };
const CONSOLE: Struct = { name: "ConsoleConfig", fields: [...CONSOLE_FIELDS, ...PCI_COMMON] };
const DEBUG_CONSOLE: Struct = {
	name: "DebugConsoleConfig",
	fields: [f("file", STRING), f("mode", CONSOLE_MODE, required), f("iobase", U16)],
};
const TOPOLOGY: Struct = {
	name: "CpuTopology",
	fields: [
		f("threads_per_core", U16, required),
		f("cores_per_die", U16, required),
		f("dies_per_package", U16, required),
		f("packages", U16, required),
	],
};
const CPUS: Struct = {
	name: "CpusConfig",
	fields: [
		f("boot_vcpus", U32, required),
		f("max_vcpus", U32, required),
		f("topology", structOf(TOPOLOGY)),
		f("kvm_hyperv", BOOLEAN, off),
		f("max_phys_bits", U8, { default: 46 }),
		f("affinity", ANY),
		f("features", structOf({ name: "CpuFeatures", fields: [f("amx", BOOLEAN, off)] }), { default: { amx: false } }),
		f("nested", BOOLEAN, on),
		f("core_scheduling", enumOf("Vm", "Vcpu", "Off"), { default: "Vm" }),
		f("profile", ANY, { default: "Host" }),
	],
};
const ZONE: Struct = {
	name: "MemoryZoneConfig",
	fields: [f("id", STRING, required), f("size", U64, required), f("hotplug_size", U64), f("hotplugged_size", U64)],
};
const MEMORY: Struct = {
	name: "MemoryConfig",
	fields: [
		f("size", U64, required),
		f("mergeable", BOOLEAN, off),
		f("hotplug_method", enumOf("Acpi", "VirtioMem"), { default: "Acpi" }),
		f("hotplug_size", U64),
		f("hotplugged_size", U64),
		f("shared", BOOLEAN, off),
		f("hugepages", BOOLEAN, off),
		f("hugepage_size", U64),
		f("prefault", BOOLEAN, off),
		f("reserve", BOOLEAN, off),
		f("zones", arrayOf(structOf(ZONE))),
		f("thp", BOOLEAN, on),
	],
};
const PAYLOAD: Struct = {
	name: "PayloadConfig",
	fields: [
		f("firmware", STRING),
		f("kernel", STRING),
		f("cmdline", STRING),
		f("initramfs", STRING),
		f("igvm", STRING),
		f("host_data", STRING),
		f("fw_cfg_config", ANY),
	],
};
const PLATFORM: Struct = {
	name: "PlatformConfig",
	fields: [
		f("num_pci_segments", U16, { default: 1 }),
		f("iommu_segments", ANY),
		f("iommu_address_width_bits", U8, { default: 64 }),
		f("system_serial_number", STRING, { alias: "serial_number" }),
		f("system_uuid", STRING, { alias: "uuid" }),
		f("oem_strings", arrayOf(STRING)),
		f("system_manufacturer", STRING),
		f("system_product_name", STRING),
		f("system_version", STRING),
		f("system_family", STRING),
		f("system_sku_number", STRING),
		f("chassis_asset_tag", STRING),
		f("sev_snp", BOOLEAN, off),
		f("iommufd", BOOLEAN, off),
		f("vfio_p2p_dma", BOOLEAN, on),
	],
};

/** The body of `vm.create`. `fds` of nets are dropped by the endpoint: descriptors never come in a body. */
export const VM: Struct = {
	name: "VmConfig",
	fields: [
		f("cpus", structOf(CPUS), {
			default: {
				boot_vcpus: 1,
				max_vcpus: 1,
				kvm_hyperv: false,
				max_phys_bits: 46,
				features: { amx: false },
				nested: true,
				core_scheduling: "Vm",
				profile: "Host",
			},
		}),
		f("memory", structOf(MEMORY), {
			default: {
				size: 512 * 1024 * 1024,
				mergeable: false,
				hotplug_method: "Acpi",
				shared: false,
				hugepages: false,
				prefault: false,
				reserve: false,
				thp: true,
			},
		}),
		f("payload", structOf(PAYLOAD)),
		f("rate_limit_groups", ANY),
		f("disks", arrayOf(structOf(DISK))),
		f("net", arrayOf(structOf(NET))),
		f("rng", structOf(RNG), { default: { pci_segment: 0, src: "/dev/urandom" } }),
		f("rtc", ANY),
		f("balloon", structOf(BALLOON)),
		f("fs", arrayOf(structOf(FS))),
		f("generic_vhost_user", ANY),
		f("pmem", arrayOf(structOf(PMEM))),
		f("serial", structOf(SERIAL), { default: { mode: "Null" } }),
		f("console", structOf(CONSOLE), { default: { mode: "Tty", pci_segment: 0 } }),
		f("debug_console", structOf(DEBUG_CONSOLE), { default: { mode: "Off", iobase: 233 } }),
		f("devices", arrayOf(structOf(DEVICE))),
		f("user_devices", ANY),
		f("vdpa", ANY),
		f("vsock", structOf(VSOCK)),
		f("pvpanic", BOOLEAN, off),
		f("iommu", BOOLEAN, off),
		f("numa", ANY),
		f("watchdog", BOOLEAN, off),
		f("pci_segments", ANY),
		f("platform", structOf(PLATFORM)),
		f("tpm", ANY),
		f("landlock_enable", BOOLEAN, off),
		f("landlock_rules", ANY),
	],
};
