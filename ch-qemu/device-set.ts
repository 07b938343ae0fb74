/** The devices of one running machine: ids, slots and QEMU names, and how each configuration becomes a device. */
import { randomBytes } from "node:crypto";
import { closeSync, openSync, readSync, statSync } from "node:fs";
import { deviceManagerError, osErrorText, VmmError } from "./api-error.ts";
import { type DeviceNode, deviceTree, PciSlots } from "./pci-slots.ts";
import * as qemu from "./qemu-devices.ts";
import type { DiskConfig, FsConfig, NetConfig, VmConfig, VsockConfig } from "./vm-config.ts";

const IMAGE_TYPES: Readonly<Record<qemu.ImageFormat, string>> = { raw: "Raw", qcow2: "Qcow2", vhdx: "Vhdx", vpc: "FixedVhd" };
const TAPS_MAX = 4096;

/** QEMU's names of devices begin so, and end in a number. */
const NAME = "dev";

/** Where devices were, and their QEMU names, by id. */
export type Places = Readonly<Record<string, Omit<qemu.Place, "id">>>;

export class DeviceSet {
	readonly #slots: PciSlots;
	readonly #devices = new Map<string, qemu.QemuDevice>();
	/** One counter for all kinds of devices: `_disk0`, then `_net1`. */
	#unnamed = 0;
	#names = 0;
	/** Places of devices that come back to where they were. */
	#places: Places;
	/** Descriptors that QEMU is started with, in the order of its numbers from `qemu.TAP_FD` on. */
	readonly inherited: number[] = [];

	/**
	 * @param segments PCI segments of the machine
	 * @param places of a machine that is restored
	 */
	constructor(segments = 1, places: Places = {}) {
		this.#slots = new PciSlots(segments);
		this.#places = places;
		const names = Object.values(places).map(({ name }) => Number(name.slice(NAME.length)) + 1);
		this.#names = Math.max(0, ...names);
	}

	/** Where all devices are. */
	get places(): Places {
		return Object.fromEntries([...this.#devices.values()].map(({ id, name, segment, slot }) => [id, { name, segment, slot }]));
	}

	/** All devices by id, those included that the guest has not let go yet. */
	get all(): ReadonlyMap<string, qemu.QemuDevice> {
		return this.#devices;
	}

	byName(name: string): qemu.QemuDevice | undefined {
		return [...this.#devices.values()].find((device) => device.name === name);
	}

	/** The device with this id. Throws the VMM's 404. */
	get(id: string): qemu.QemuDevice {
		const device = this.#devices.get(id);
		if (device === undefined)
			throw new VmmError(404, "Error from device manager", `Failed to find device corresponding to the given identifier: ${id}`);
		return device;
	}

	/** A device that leaves for a moment: its next one has its place and name. */
	lend(id: string): void {
		this.#places = this.places;
		this.forget(id);
	}

	/** A device that failed or that the guest has let go: id and slot are free again. */
	forget(id: string): void {
		const device = this.#devices.get(id);
		if (device === undefined) return;
		this.#devices.delete(id);
		this.#slots.free(device);
	}

	tree(serial: boolean): Record<string, DeviceNode> {
		return deviceTree(this.#devices, serial);
	}

	/** Names and places a disk; the configuration gets its id and the image's type. */
	addDisk(disk: DiskConfig): qemu.QemuDevice {
		if (disk.path === undefined) throw deviceManagerError("No disk path was specified when one was expected");
		const format = imageFormat(disk.path, disk.image_type);
		const device = statSync(disk.path).isBlockDevice();
		disk.id ??= this.#unnamedId("_disk");
		disk.image_type = IMAGE_TYPES[format];
		return this.#place(disk.id, disk, (place) => qemu.diskDevice(place, disk, format, device));
	}

	/**
	 * Names and places a card on the tap's descriptors or name; a tap without a name gets the first `vmtapN` that is free, as the real VMM's would.
	 * @param hot the machine runs already
	 */
	addNet(net: NetConfig, hot = false): qemu.QemuDevice {
		net.id ??= this.#unnamedId("_net");
		net.mac ??= randomMac();
		const { fds, mac } = net;
		if (fds === undefined) net.tap ??= freeTap();
		return this.#place(net.id, net, (place) => {
			if (fds === undefined) return qemu.netDevice(place, net, { ifname: net.tap ?? "" }, mac);
			// A number is a descriptor that QEMU inherits, a name one that its monitor is given.
			const names = fds.map((fd, queue) => (hot ? qemu.queueName(place.name, queue) : String(qemu.TAP_FD + this.inherited.push(fd) - 1)));
			return qemu.netDevice(place, net, { fds: names.join(":") }, mac);
		});
	}

	/** `vhostSocket`: where QEMU waits for the back end of a device that is plugged; none at the start. */
	addVsock(vsock: VsockConfig, vhostSocket?: string): qemu.QemuDevice {
		vsock.id ??= this.#unnamedId("_vsock");
		return this.#place(vsock.id, vsock, (place) => qemu.vsockDevice(place, vhostSocket));
	}

	addFs(fs: FsConfig): qemu.QemuDevice {
		fs.id ??= this.#unnamedId("_fs");
		return this.#place(fs.id, fs, (place) => qemu.fsDevice(place, fs));
	}

	/** All devices of a configuration, in the real VMM's order: console, disks, nets, rng, shared file systems, vsock, memory, balloon, panic. */
	addAll(config: VmConfig): void {
		const { memory } = config;
		if (config.console.mode !== "Off") this.#place("__console", config.console, (place) => qemu.consoleDevice(place, config.console));
		for (const disk of config.disks ?? []) this.addDisk(disk);
		for (const net of config.net ?? []) this.addNet(net);
		this.#place("__rng", config.rng, (place) => qemu.rngDevice(place, config.rng));
		for (const fs of config.fs ?? []) this.addFs(fs);
		if (config.vsock !== undefined) this.addVsock(config.vsock);
		if (memory.hotplug_method === "VirtioMem" && (memory.hotplug_size ?? 0) > 0)
			this.#place("mem0", undefined, (place) => qemu.memDevice(place, memory));
		const { balloon } = config;
		if (balloon !== undefined) this.#place("__balloon", balloon, (place) => qemu.balloonDevice(place, balloon));
		if (config.pvpanic) this.#place("__pvpanic", undefined, (place) => qemu.pvpanicDevice(place));
	}

	#unnamedId(prefix: string): string {
		for (;;) {
			const id = `${prefix}${this.#unnamed++}`;
			if (!this.#devices.has(id)) return id;
		}
	}

	#place(
		id: string,
		wish: { readonly pci_segment: number; readonly pci_device_id?: number } | undefined,
		build: (place: qemu.Place) => qemu.QemuDevice,
	): qemu.QemuDevice {
		if (this.#devices.has(id)) throw deviceManagerError(`Invalid identifier as it is not unique: ${id}`);
		const known = Object.hasOwn(this.#places, id) ? this.#places[id] : undefined;
		if (known !== undefined) {
			const { [id]: _, ...others } = this.#places;
			this.#places = others;
		}
		const segment = known?.segment ?? wish?.pci_segment ?? 0;
		const slot = this.#slots.take(id, segment, known?.slot ?? wish?.pci_device_id);
		const device = build({ id, name: known?.name ?? `${NAME}${this.#names++}`, segment, slot });
		this.#devices.set(id, device);
		return device;
	}
}

/** What the file at `path` is. `stated` is the configuration's `image_type`; `Unknown` means: look. Throws the VMM's error for a file that can't be opened. */
export function imageFormat(path: string, stated: string): qemu.ImageFormat {
	let head: Buffer;
	try {
		const fd = openSync(path, "r");
		head = Buffer.alloc(8);
		if (!statSync(path).isDirectory()) readSync(fd, head, 0, 8, 0);
		closeSync(fd);
	} catch (error) {
		throw deviceManagerError("Cannot open disk path", `I/O error (path=${path} op=open)`, osErrorText(error));
	}
	if (stated === "Qcow2" || (stated === "Unknown" && head.subarray(0, 4).toString("latin1") === "QFI\xfb")) return "qcow2";
	if (stated === "Vhdx" || (stated === "Unknown" && head.toString("latin1") === "vhdxfile")) return "vhdx";
	return stated === "FixedVhd" ? "vpc" : "raw";
}

/** A unicast address that nobody was given. */
function randomMac(): string {
	const bytes = randomBytes(6);
	bytes[0] = ((bytes[0] ?? 0) & 0xfc) | 0x02;
	return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(":");
}

function freeTap(): string {
	for (let i = 0; i < TAPS_MAX; i++) {
		if (statSync(`/sys/class/net/vmtap${i}`, { throwIfNoEntry: false }) === undefined) return `vmtap${i}`;
	}
	throw deviceManagerError("Cannot create virtio-net device", "Failed to open taps", `all ${TAPS_MAX} names vmtapN are taken`);
}
