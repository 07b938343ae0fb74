/**
 * The configuration of a VM and of its devices as Cloud Hypervisor v53 takes them in `vm.create` and `vm.add-*` and gives them in `vm.info`.
 * Sizes are bytes. The VMM drops fields that it does not know without a word, so a misspelt one would be lost: that is what these types are for.
 */

/** The body of `vm.create`. */
export interface VmConfig {
	payload: PayloadConfig;
	cpus?: CpusConfig;
	memory?: MemoryConfig;
	rate_limit_groups?: RateLimitGroupConfig[];
	disks?: DiskConfig[];
	/** Descriptors (`fds`) are ignored here: use `vm.add-net`. */
	net?: NetConfig[];
	rng?: RngConfig;
	balloon?: BalloonConfig;
	fs?: FsConfig[];
	generic_vhost_user?: GenericVhostUserConfig[];
	pmem?: PmemConfig[];
	serial?: SerialConfig;
	console?: ConsoleConfig;
	debug_console?: DebugConsoleConfig;
	devices?: DeviceConfig[];
	user_devices?: UserDeviceConfig[];
	vdpa?: VdpaConfig[];
	vsock?: VsockConfig;
	numa?: NumaConfig[];
	iommu?: boolean;
	watchdog?: boolean;
	rtc?: RtcConfig;
	pvpanic?: boolean;
	pci_segments?: PciSegmentConfig[];
	platform?: PlatformConfig;
	tpm?: TpmConfig;
	landlock_enable?: boolean;
	landlock_rules?: LandlockConfig[];
}

/** What the VM runs first. */
export interface PayloadConfig {
	firmware?: string;
	kernel?: string;
	cmdline?: string;
	initramfs?: string;
	/** Required with SEV-SNP. */
	igvm?: string;
	/** 64 hexadecimal digits that the hardware report repeats. */
	host_data?: string;
	fw_cfg_config?: FwCfgConfig;
}

/** What goes to the guest through fw_cfg. */
export interface FwCfgConfig {
	e820?: boolean;
	kernel?: boolean;
	cmdline?: boolean;
	initramfs?: boolean;
	acpi_tables?: boolean;
	items?: { item_list: FwCfgItem[] };
}

/** One named fw_cfg item, from a file or a text. */
export interface FwCfgItem {
	name: string;
	file?: string;
	string?: string;
}

export interface CpuAffinity {
	vcpu: number;
	host_cpus: number[];
}

export interface CpuFeatures {
	amx?: boolean;
}

export interface CpuTopology {
	threads_per_core?: number;
	cores_per_die?: number;
	dies_per_package?: number;
	packages?: number;
}

/** Which threads may share a core under Linux core scheduling. */
export type CoreSchedulingMode = "Vm" | "Vcpu" | "Off";

export interface CpusConfig {
	boot_vcpus: number;
	max_vcpus: number;
	topology?: CpuTopology;
	kvm_hyperv?: boolean;
	max_phys_bits?: number;
	nested?: boolean;
	affinity?: CpuAffinity[];
	features?: CpuFeatures;
	core_scheduling?: CoreSchedulingMode;
	profile?: string;
}

export interface PciSegmentConfig {
	pci_segment: number;
	mmio32_aperture_weight?: number;
	mmio64_aperture_weight?: number;
}

export interface PlatformConfig {
	num_pci_segments?: number;
	iommu_segments?: number[];
	iommu_address_width_bits?: number;
	system_serial_number?: string;
	/** @deprecated the older name of `system_serial_number` */
	serial_number?: string;
	system_uuid?: string;
	/** @deprecated the older name of `system_uuid` */
	uuid?: string;
	oem_strings?: string[];
	system_manufacturer?: string;
	system_product_name?: string;
	system_version?: string;
	system_family?: string;
	system_sku_number?: string;
	chassis_asset_tag?: string;
	tdx?: boolean;
	/** A build without SNP drops this silently: check `features` of `vmm.ping`, and read it back from `vm.info`. */
	sev_snp?: boolean;
	iommufd?: boolean;
	vfio_p2p_dma?: boolean;
}

export interface MemoryZoneConfig {
	id: string;
	size: number;
	file?: string;
	mergeable?: boolean;
	shared?: boolean;
	hugepages?: boolean;
	hugepage_size?: number;
	host_numa_node?: number;
	hotplug_size?: number;
	hotplugged_size?: number;
	prefault?: boolean;
	reserve?: boolean;
}

/** A zone's new place when a VM is restored or received. */
export interface MemoryZoneUpdate {
	id: string;
	host_numa_node: number;
}

export interface MemoryConfig {
	size: number;
	hotplug_size?: number;
	hotplugged_size?: number;
	mergeable?: boolean;
	/** `Acpi` adds in steps of 128 MiB; `VirtioMem` also shrinks. */
	hotplug_method?: string;
	/** Needed by vhost-user devices (`add-fs`). */
	shared?: boolean;
	hugepages?: boolean;
	hugepage_size?: number;
	prefault?: boolean;
	reserve?: boolean;
	thp?: boolean;
	zones?: MemoryZoneConfig[];
}

/** `size` tokens, refilled in full every `refill_time` milliseconds. */
export interface TokenBucket {
	size: number;
	one_time_burst?: number;
	refill_time: number;
}

export interface RateLimiterConfig {
	bandwidth?: TokenBucket;
	ops?: TokenBucket;
}

export interface RateLimitGroupConfig {
	id: string;
	rate_limiter_config: RateLimiterConfig;
}

export interface VirtQueueAffinity {
	queue_index: number;
	host_cpus: number[];
}

export type ImageType = "FixedVhd" | "Qcow2" | "Raw" | "Vhdx" | "Unknown";
export type LockGranularity = "ByteRange" | "Full";

/** A virtio-blk disk. `serial` is what the guest reads as `/sys/block/<name>/serial`. */
export interface DiskConfig {
	path?: string;
	readonly?: boolean;
	direct?: boolean;
	iommu?: boolean;
	num_queues?: number;
	queue_size?: number;
	vhost_user?: boolean;
	vhost_socket?: string;
	rate_limiter_config?: RateLimiterConfig;
	pci_segment?: number;
	pci_device_id?: number;
	/** Must not begin with `__`; unnamed disks become `_disk0`, `_disk1`... */
	id?: string;
	serial?: string;
	rate_limit_group?: string;
	queue_affinity?: VirtQueueAffinity[];
	backing_files?: boolean;
	sparse?: boolean;
	image_type?: ImageType;
	lock_granularity?: LockGranularity;
	disable_io_uring?: boolean;
	disable_aio?: boolean;
}

/** A virtio-net device: over a tap by name, over descriptors that go with `vm.add-net`, or over vhost-user. */
export interface NetConfig {
	tap?: string;
	ip?: string;
	mask?: string;
	mac?: string;
	host_mac?: string;
	mtu?: number;
	iommu?: boolean;
	/** Two per queue pair; with descriptors: twice their number, and at most twice the boot vCPUs. */
	num_queues?: number;
	queue_size?: number;
	vhost_user?: boolean;
	vhost_socket?: string;
	vhost_mode?: string;
	id?: string;
	pci_segment?: number;
	pci_device_id?: number;
	rate_limiter_config?: RateLimiterConfig;
	offload_tso?: boolean;
	offload_ufo?: boolean;
	offload_csum?: boolean;
}

export interface RngConfig {
	src: string;
	id?: string;
	pci_segment?: number;
	pci_device_id?: number;
	iommu?: boolean;
}

export interface RtcConfig {
	id?: string;
	pci_segment?: number;
	pci_device_id?: number;
	iommu?: boolean;
}

export interface BalloonConfig {
	size: number;
	id?: string;
	pci_segment?: number;
	pci_device_id?: number;
	iommu?: boolean;
	deflate_on_oom?: boolean;
	free_page_reporting?: boolean;
}

/** A virtio-fs share. Adding one whose back end does not listen blocks the whole VMM for a minute. */
export interface FsConfig {
	tag: string;
	socket: string;
	num_queues: number;
	queue_size: number;
	pci_segment?: number;
	pci_device_id?: number;
	id?: string;
}

export interface GenericVhostUserConfig {
	socket: string;
	queue_sizes: number[];
	device_type: number;
	pci_segment?: number;
	pci_device_id?: number;
	id?: string;
}

export interface PmemConfig {
	file: string;
	size?: number;
	iommu?: boolean;
	discard_writes?: boolean;
	pci_segment?: number;
	pci_device_id?: number;
	id?: string;
}

export type ConsoleMode = "Off" | "Pty" | "Tty" | "File" | "Socket" | "Null";

/** The virtio console. The VMM's default is its own standard output: always say `Off`. */
export interface ConsoleConfig {
	mode: ConsoleMode;
	file?: string;
	socket?: string;
	iommu?: boolean;
	id?: string;
	pci_segment?: number;
	pci_device_id?: number;
}

/** The 16550 serial port. */
export interface SerialConfig {
	mode: ConsoleMode;
	file?: string;
	socket?: string;
}

/** The port that firmware writes its debug output to. */
export interface DebugConsoleConfig {
	mode: ConsoleMode;
	file?: string;
	iobase?: number;
}

/** A VFIO device: `path` is its folder in sysfs. */
export interface DeviceConfig {
	path?: string;
	iommu?: boolean;
	pci_segment?: number;
	pci_device_id?: number;
	id?: string;
	x_nv_gpudirect_clique?: number;
	x_exclude_mmap_bars?: number[];
}

export interface UserDeviceConfig {
	socket: string;
	id?: string;
	pci_segment?: number;
	pci_device_id?: number;
}

export interface TpmConfig {
	socket: string;
}

export interface VdpaConfig {
	path: string;
	num_queues: number;
	iommu?: boolean;
	pci_segment?: number;
	pci_device_id?: number;
	id?: string;
}

/** Hybrid vsock: the host side is the unix socket `socket`, see `vsock.ts`. */
export interface VsockConfig {
	cid: number;
	socket: string;
	iommu?: boolean;
	pci_segment?: number;
	pci_device_id?: number;
	id?: string;
}

export interface NumaDistance {
	destination: number;
	distance: number;
}

export interface NumaConfig {
	guest_numa_id: number;
	cpus?: number[];
	distances?: NumaDistance[];
	memory_zones?: string[];
	pci_segments?: number[];
	device_id?: string;
}

/** A path that the VMM may reach under Landlock; `access` is `r`, `w` or `rw`. */
export interface LandlockConfig {
	path: string;
	access: string;
}
