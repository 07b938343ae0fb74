/**
 * What the real VMM checks before it takes a device: the whole configuration, with the new device in it. `vm.create` and `vm.boot` check nothing.
 *
 * Only rules that QEMU's VMs can meet are here; the texts are the API's own.
 */
import { VmmError } from "./api-error.ts";
import type { DiskConfig, NetConfig, PciCommon, VmConfig } from "./vm-config.ts";

const SLOTS = 32;
const SEGMENTS_MAX = 96;
const SERIAL_MAX_CHARS = 20;
const BLOCK_QUEUE_MIN = 2;
const SPECIAL_CIDS: readonly number[] = [0, 1, 2, 4294967295];
const MTU_MIN = 1280;
const VCPUS_MAX = 8192;

const refuse = (text: string, status: 400 | 409 = 400): never => {
	throw new VmmError(status, "Failed to validate config", text);
};
const refusePayload = (text: string): never => {
	throw new VmmError(400, "Failed to validate config", "Payload configuration is not bootable", text);
};

/** Checks a configuration. Throws 400, or 409 for an id that is used twice. */
export function validateConfig(config: VmConfig): void {
	const ids = new Set<string>();
	const { payload, cpus, memory, platform } = config;
	const segments = platform?.num_pci_segments ?? 1;
	if (payload === undefined || (payload.kernel === undefined && payload.firmware === undefined && payload.igvm === undefined)) {
		refusePayload("No bootitem provided: neither firmware nor kernel");
	}
	if (payload?.kernel !== undefined && payload.firmware !== undefined)
		refusePayload("Specifying a kernel is not supported when a firmware is provided");
	if (platform?.sev_snp === true) {
		if (payload?.host_data !== undefined && payload.host_data.length !== 64) refuse("Invalid host data format");
		if (payload?.igvm === undefined) refuse("SEV-SNP requires an IGVM payload (--payload igvm=<path>)");
	}
	checkSegments(segments);
	for (const output of [config.console, config.serial]) {
		if (output.mode === "File" && output.file === undefined) refuse("Path missing when using file console mode");
	}
	if (cpus.max_vcpus < cpus.boot_vcpus) refuse(`Max CPUs (${cpus.max_vcpus}) lower than boot CPUs (${cpus.boot_vcpus})`);
	if (cpus.max_vcpus > VCPUS_MAX) refuse(`Too many CPUs: specified ${cpus.max_vcpus} but ${VCPUS_MAX} is the limit`);
	for (const disk of config.disks ?? []) checkDisk(disk, cpus.boot_vcpus, ids, segments);
	for (const net of config.net ?? []) checkNet(net, cpus.boot_vcpus, ids, segments);
	for (const fs of config.fs ?? []) {
		if (!memory.shared && !memory.hugepages) refuse("Using vhost-user requires using shared memory or huge pages");
		checkPci(fs, ids, segments);
	}
	for (const device of [...(config.pmem ?? []), ...(config.devices ?? []), config.rng, config.console]) checkPci(device, ids, segments);
	if (memory.shared && memory.mergeable) refuse("Invalid to set both 'mergeable' and 'shared' for memory");
	if (memory.hugepage_size !== undefined && !memory.hugepages) refuse("Huge page size specified but huge pages not enabled");
	if (config.vsock !== undefined && SPECIAL_CIDS.includes(config.vsock.cid)) refuse(`${config.vsock.cid} is a special VSOCK CID`);
	if (config.balloon !== undefined) {
		checkPci(config.balloon, ids, segments);
		const ram = memory.size + (memory.hotplugged_size ?? 0);
		if (config.balloon.size >= ram) refuse(`Balloon size (${config.balloon.size}) greater than RAM (${ram})`);
	}
	if (config.vsock !== undefined) checkPci(config.vsock, ids, segments);
}

function checkDisk(disk: DiskConfig, bootVcpus: number, ids: Set<string>, segments: number): void {
	if (disk.vhost_user) refuse("Using vhost-user requires using shared memory or huge pages");
	if (disk.num_queues > bootVcpus) refuse(`Queue count (${disk.num_queues}) must not exceed boot vCPUs (${bootVcpus})`);
	checkQueueSize(disk.queue_size);
	if (disk.queue_size <= BLOCK_QUEUE_MIN) refuse(`Block queue size must be greater than ${BLOCK_QUEUE_MIN}: ${disk.queue_size}`);
	const serialLength = Buffer.byteLength(disk.serial ?? "");
	if (serialLength > SERIAL_MAX_CHARS)
		refuse(`Block device serial length (${serialLength}) exceeds maximum allowed length (${SERIAL_MAX_CHARS})`);
	checkPci(disk, ids, segments);
}

function checkNet(net: NetConfig, bootVcpus: number, ids: Set<string>, segments: number): void {
	if (net.vhost_user) refuse("Using vhost-user requires using shared memory or huge pages");
	if (net.num_queues < 2) refuse(`Number of queues (${net.num_queues}) to virtio_net should be higher than 2`);
	if (net.fds !== undefined && net.fds.length * 2 !== net.num_queues)
		refuse(`Number of queues (${net.num_queues}) to virtio_net does not match the number of FDs (${net.fds.length * 2})`);
	if (Math.floor(net.num_queues / 2) > bootVcpus) refuse(`Queue count (${net.num_queues}) must not exceed boot vCPUs (${bootVcpus})`);
	checkQueueSize(net.queue_size);
	if (net.mtu !== undefined && net.mtu < MTU_MIN) refuse(`Provided MTU ${net.mtu} is lower than 1280 (expected by VIRTIO specification)`);
	if (!net.offload_csum && (net.offload_tso || net.offload_ufo)) refuse('"offload_tso" and "offload_ufo" depend on "offload_csum"');
	checkPci(net, ids, segments);
}

function checkQueueSize(size: number): void {
	if (size > 32768 || size === 0 || (size & (size - 1)) !== 0) refuse(`Queue size must be a power of 2 no greater than 32768: ${size}`);
}

function checkSegments(segments: number): void {
	if (segments === 0 || segments > SEGMENTS_MAX) refuse(`Number of PCI segments (${segments}) not in range of 1 to ${SEGMENTS_MAX}`);
}

function checkPci(device: PciCommon, ids: Set<string>, segments: number): void {
	if (device.pci_segment >= segments) refuse(`Invalid PCI segment id: ${device.pci_segment}`);
	if (device.pci_device_id !== undefined && device.pci_device_id >= SLOTS)
		refuse(`Given PCI device ID (${device.pci_device_id}) is out of the supported range of 0..${SLOTS}`);
	if (device.pci_device_id === 0) refuse("Given PCI device ID (0) is reserved");
	if (device.id === undefined || device.id === "__rng" || device.id === "__balloon") return;
	if (device.id.startsWith("__")) refuse(`Identifier ${device.id} is not valid`);
	if (ids.has(device.id)) refuse(`Identifier ${device.id} is not unique`, 409);
	ids.add(device.id);
}
