/**
 * The API's devices as QEMU's: pure, and the same for the command line (cold) and the monitor (hot plug), since QEMU takes JSON in both places.
 */
import { bridgeSlot } from "./pci-slots.ts";
import type { BalloonConfig, ConsoleConfig, DiskConfig, FsConfig, MemoryConfig, NetConfig, RngConfig, SerialConfig } from "./vm-config.ts";

export type QemuProperties = Readonly<Record<string, unknown>>;

/** What stands behind a device. `chardev` differs between the two places: text on the command line, a structure on the monitor. */
export type QemuBackend =
	| { readonly kind: "object"; readonly properties: QemuProperties }
	| { readonly kind: "blockdev"; readonly properties: QemuProperties }
	| { readonly kind: "netdev"; readonly properties: QemuProperties }
	| { readonly kind: "chardev"; readonly id: string; readonly option: string; readonly backend: QemuProperties };

/** A device with its place. `name` is QEMU's id: the API's ids may start with `_`, QEMU's may not. */
export type QemuDevice = {
	readonly id: string;
	readonly name: string;
	readonly segment: number;
	readonly slot: number;
	readonly type: DeviceType;
	readonly backends: readonly QemuBackend[];
	readonly properties: QemuProperties;
	/** Devices that sit on this one and come with it (the console's port). */
	readonly ports: readonly QemuProperties[];
};

export type DeviceType = "block" | "fs" | "net" | "rng" | "vsock" | "balloon" | "console" | "mem" | "pvpanic";

/** Where a device goes: its API id, its QEMU name, its PCI segment and slot. */
export type Place = { readonly id: string; readonly name: string; readonly segment: number; readonly slot: number };

const address = (slot: number): string => `0x${slot.toString(16)}`;
const busOf = (segment: number): string => (segment === 0 ? "pci.0" : `segment${segment}`);

/** Behind a bridge a device does without I/O ports: the guest gives the bridge none for devices that come later. */
const pci = ({ name, segment, slot }: Place, driver: string, more: QemuProperties): QemuProperties => ({
	driver,
	id: name,
	bus: busOf(segment),
	addr: address(slot),
	...(segment > 0 && driver.startsWith("virtio-") ? { "disable-legacy": "on" } : {}),
	...more,
});

/**
 * The bridges to further segments. A guest gives a bridge memory by what is behind it when it boots, at least 1 MiB: the device in slot 0, which
 * no driver uses, makes it give some, and that has room for 31 virtio devices (20 KiB each).
 */
export function bridgeDevices(segments: number): QemuProperties[] {
	return Array.from({ length: segments - 1 }, (_, index) => index + 1).flatMap((segment) => [
		{
			driver: "pci-bridge",
			id: busOf(segment),
			bus: busOf(0),
			addr: address(bridgeSlot(segment, segments)),
			chassis_nr: segment,
			shpc: false,
			msi: "off",
		},
		{ driver: "pci-testdev", bus: busOf(segment), addr: address(0) },
	]);
}

/** What a disk image is, from its first bytes and the configuration. */
export type ImageFormat = "raw" | "qcow2" | "vhdx" | "vpc";

/**
 * A disk. Its image is opened with QEMU's own locks: a second writer is refused.
 * @param device the path is a block device, which QEMU opens by a driver of its own
 */
export function diskDevice(place: Place, disk: DiskConfig, format: ImageFormat, device = false): QemuDevice {
	const node = `${place.name}-image`;
	const blockdev: QemuProperties = {
		driver: format,
		"node-name": node,
		"read-only": disk.readonly,
		cache: { direct: disk.direct },
		...(disk.sparse ? { discard: "unmap" } : {}),
		file: {
			driver: device ? "host_device" : "file",
			filename: disk.path ?? "",
			cache: { direct: disk.direct },
			...(disk.sparse ? { discard: "unmap" } : {}),
		},
	};
	const properties = pci(place, "virtio-blk-pci", {
		drive: node,
		// A full disk of the host is the guest's error, and does not stop the VM.
		werror: "report",
		rerror: "report",
		"num-queues": disk.num_queues,
		"queue-size": disk.queue_size,
		...(disk.serial === undefined ? {} : { serial: disk.serial }),
	});
	return { ...place, type: "block", backends: [{ kind: "blockdev", properties: blockdev }], properties, ports: [] };
}

/** A tap by its name, which QEMU makes when there is none, or by QEMU's names of the descriptors of its queues, between colons. */
export type Tap = { readonly ifname: string } | { readonly fds: string };

/** QEMU's number of the first tap's descriptor when it starts with some. */
export const TAP_FD = 6;

/** The name under which QEMU's monitor is given the descriptor of a queue. */
export const queueName = (device: string, queue: number): string => `${device}-queue${queue}`;

/** A network card on a tap. */
export function netDevice(place: Place, net: NetConfig, tap: Tap, mac: string): QemuDevice {
	const netdev = `${place.name}-tap`;
	const pairs = Math.max(1, Math.floor(net.num_queues / 2));
	const backend: QemuProperties = {
		type: "tap",
		id: netdev,
		...tap,
		...("ifname" in tap ? { script: "no", downscript: "no", vnet_hdr: true } : {}),
		...("ifname" in tap && pairs > 1 ? { queues: pairs } : {}),
	};
	const properties = pci(place, "virtio-net-pci", {
		netdev,
		mac,
		romfile: "",
		rx_queue_size: Math.min(1024, Math.max(256, net.queue_size)),
		...(pairs > 1 ? { mq: true, vectors: 2 * pairs + 2 } : {}),
		...(net.mtu === undefined ? {} : { host_mtu: net.mtu }),
		...(net.offload_tso ? {} : { host_tso4: false, host_tso6: false, guest_tso4: false, guest_tso6: false }),
		...(net.offload_ufo ? {} : { host_ufo: false, guest_ufo: false }),
		...(net.offload_csum ? {} : { csum: false, guest_csum: false }),
	});
	return { ...place, type: "net", backends: [{ kind: "netdev", properties: backend }], properties, ports: [] };
}

/** The random number device, fed from the file that the configuration names. */
export function rngDevice(place: Place, rng: RngConfig): QemuDevice {
	const source = `${place.name}-source`;
	const backend: QemuBackend = { kind: "object", properties: { "qom-type": "rng-random", id: source, filename: rng.src } };
	return { ...place, type: "rng", backends: [backend], properties: pci(place, "virtio-rng-pci", { rng: source }), ports: [] };
}

/** The descriptor on which QEMU finds the vsock back end when it starts with one. */
export const VSOCK_FD = 4;

/** The vsock device. Its back end is a descriptor that QEMU inherits at the start, or connects to at `vhostSocket`
 * when it is plugged later. */
export function vsockDevice(place: Place, vhostSocket = ""): QemuDevice {
	const chardev = `${place.name}-backend`;
	const backend: QemuBackend = {
		kind: "chardev",
		id: chardev,
		option: `socket,id=${chardev},fd=${VSOCK_FD}`,
		backend: { type: "socket", data: { addr: { type: "unix", data: { path: vhostSocket } }, server: false } },
	};
	return { ...place, type: "vsock", backends: [backend], properties: pci(place, "vhost-user-vsock-pci", { chardev }), ports: [] };
}

/** A shared file system. Its back end listens at the configuration's socket. */
export function fsDevice(place: Place, fs: FsConfig): QemuDevice {
	const chardev = `${place.name}-backend`;
	const backend: QemuBackend = {
		kind: "chardev",
		id: chardev,
		option: `socket,id=${chardev},path=${fs.socket.replaceAll(",", ",,")}`,
		backend: { type: "socket", data: { addr: { type: "unix", data: { path: fs.socket } }, server: false } },
	};
	const properties = pci(place, "vhost-user-fs-pci", { chardev, tag: fs.tag, "queue-size": fs.queue_size });
	return { ...place, type: "fs", backends: [backend], properties, ports: [] };
}

export function balloonDevice(place: Place, balloon: BalloonConfig): QemuDevice {
	const properties = pci(place, "virtio-balloon-pci", {
		"deflate-on-oom": balloon.deflate_on_oom,
		"free-page-reporting": balloon.free_page_reporting,
	});
	return { ...place, type: "balloon", backends: [], properties, ports: [] };
}

/** virtio-mem over the whole hot-plug range; `plugged` bytes of it are asked of the guest from the start. */
export function memDevice(place: Place, memory: MemoryConfig): QemuDevice {
	const backend: QemuBackend = { kind: "object", properties: memoryBackend(`${place.name}-ram`, memory.hotplug_size ?? 0, memory) };
	const properties = pci(place, "virtio-mem-pci", { memdev: `${place.name}-ram`, "requested-size": memory.hotplugged_size ?? 0 });
	return { ...place, type: "mem", backends: [backend], properties, ports: [] };
}

/** The virtio console (hvc0). */
export function consoleDevice(place: Place, config: ConsoleConfig): QemuDevice {
	const chardev = `${place.name}-out`;
	const backend: QemuBackend = { kind: "chardev", id: chardev, option: chardevOption(chardev, config), backend: {} };
	const properties = pci(place, "virtio-serial-pci", {});
	const port = { driver: "virtconsole", id: `${place.name}-port`, chardev, bus: `${place.name}.0` };
	return { ...place, type: "console", backends: [backend], properties, ports: [port] };
}

export function pvpanicDevice(place: Place): QemuDevice {
	return { ...place, type: "pvpanic", backends: [], properties: pci(place, "pvpanic-pci", {}), ports: [] };
}

/** Guest memory: a memfd that vhost-user backends can map, so always shared. */
export function memoryBackend(id: string, sizeBytes: number, memory: MemoryConfig): QemuProperties {
	return {
		"qom-type": "memory-backend-memfd",
		id,
		size: sizeBytes,
		share: true,
		...(memory.prefault ? { prealloc: true } : {}),
		...(memory.hugepages ? { hugetlb: true, ...(memory.hugepage_size === undefined ? {} : { hugetlbsize: memory.hugepage_size }) } : {}),
	};
}

/** The command-line form of a console's character device. Commas in paths are doubled, as QEMU wants them. */
export function chardevOption(id: string, config: SerialConfig): string {
	const path = (text: string | undefined): string => (text ?? "").replaceAll(",", ",,");
	switch (config.mode) {
		case "Off":
		case "Null":
			return `null,id=${id}`;
		case "Tty":
			return `stdio,id=${id},signal=off`;
		case "Pty":
			return `pty,id=${id}`;
		case "File":
			return `file,id=${id},path=${path(config.file)}`;
		case "Socket":
			return `socket,id=${id},path=${path(config.socket)},server=on,wait=off`;
	}
}
