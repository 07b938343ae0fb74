/** Devices that come and go while the guest runs. */
import { mkdtempSync, rmSync, watch } from "node:fs";
import { join } from "node:path";
import { deviceManagerError, messageOf, VmmError } from "./api-error.ts";
import { within } from "./child.ts";
import { imageLocked, type Machine } from "./machine.ts";
import { type QemuBackend, type QemuDevice, queueName } from "./qemu-devices.ts";
import type { DiskConfig, FsConfig, NetConfig, VsockConfig } from "./vm-config.ts";
import type { Ports } from "./vsock-backend.ts";

const VSOCK_START_LIMIT_MS = 10_000;

export async function plugDisk(machine: Machine, disk: DiskConfig): Promise<QemuDevice> {
	const device = machine.devices.addDisk(disk);
	return plug(machine, device, (text) => imageLocked(text, disk.path) ?? deviceManagerError("Cannot create virtio-blk device", text));
}

export async function plugNet(machine: Machine, net: NetConfig): Promise<QemuDevice> {
	const device = machine.devices.addNet(net, true);
	const refuse = (text: string): VmmError =>
		text.includes("TUNGETIFF") ? noTap() : deviceManagerError("Cannot create virtio-net device", "Failed to open taps", text);
	return plug(machine, device, refuse, net.fds);
}

/** A descriptor of something else, in the real VMM's words: the number is that of the ioctl. */
const noTap = (): VmmError =>
	deviceManagerError(
		"Cannot create virtio-net device",
		"Using existing tap",
		"Ioctl failed (2147767506)",
		"Inappropriate ioctl for device (os error 25)",
	);

/** The back end must listen already. The real VMM waits a minute for one that does not; here it is refused at once. */
export async function plugFs(machine: Machine, fs: FsConfig): Promise<QemuDevice> {
	const device = machine.devices.addFs(fs);
	return plug(machine, device, (text) => deviceManagerError("Cannot create virtio-fs device", text));
}

/** @param restored the connections of a guest that had the device before */
export async function plugVsock(machine: Machine, vsock: VsockConfig, restored?: readonly Ports[]): Promise<QemuDevice> {
	const folder = mkdtempSync("/tmp/ch-qemu-");
	try {
		const vhostSocket = join(folder, "v");
		const device = machine.devices.addVsock(vsock, vhostSocket);
		const refuse = (text: string): VmmError => deviceManagerError("Cannot create virtio-vsock device", text);
		const listening = appears(folder, "v");
		machine.startVsock(vsock.socket, vsock.cid, { vhostSocket, restored });
		await within(VSOCK_START_LIMIT_MS, "ch-qemu-vsock did not start", listening);
		return await plug(machine, device, refuse);
	} catch (error) {
		await machine.stopVsock();
		throw error;
	} finally {
		rmSync(folder, { recursive: true, force: true });
	}
}

/**
 * Asks the guest to let a device go; `device-removed` comes when it has. Asking again while it thinks is no error.
 * Throws the VMM's errors for an unknown id and for devices that must stay.
 */
export async function unplug(machine: Machine, id: string): Promise<void> {
	if (id === "__serial" || id === "__ioapic") throw deviceManagerError("Could not find the node in the device tree");
	const device = machine.devices.get(id);
	if (!["block", "fs", "net", "vsock"].includes(device.type))
		throw deviceManagerError(`Not allowed to remove this type of device from the VM: ${device.type}`);
	try {
		await machine.qmp.run("device_del", { id: device.name });
	} catch (error) {
		if (!/already in the process of unplug/.test(messageOf(error)))
			throw deviceManagerError("Failed to make hotplug notification", messageOf(error));
	}
}

/** Makes a device's backends and the device; `fds` are those of a tap's queues. What was made is undone when a step fails. */
async function plug(
	machine: Machine,
	device: QemuDevice,
	refuse: (text: string) => VmmError,
	fds: readonly number[] = [],
): Promise<QemuDevice> {
	const made: QemuBackend[] = [];
	try {
		for (const [queue, fd] of fds.entries()) await machine.qmp.give(queueName(device.name, queue), fd);
		for (const backend of device.backends) {
			await addBackend(machine, backend);
			made.push(backend);
		}
		await machine.qmp.run("device_add", device.properties);
		return device;
	} catch (error) {
		for (const backend of made.reverse()) {
			if (backend.kind === "blockdev") await machine.qmp.run("blockdev-del", { "node-name": backend.properties["node-name"] });
			else if (backend.kind === "netdev") await machine.qmp.run("netdev_del", { id: backend.properties["id"] });
			else if (backend.kind === "chardev") await machine.qmp.run("chardev-remove", { id: backend.id });
		}
		machine.devices.forget(device.id);
		throw error instanceof VmmError ? error : refuse(messageOf(error));
	}
}

/** Resolves when a file of that name is put into the folder. */
function appears(folder: string, name: string): Promise<void> {
	return new Promise((resolve) => {
		const watcher = watch(folder, (_, file) => {
			if (file !== name) return;
			watcher.close();
			resolve();
		});
	});
}

async function addBackend({ qmp }: Machine, backend: QemuBackend): Promise<void> {
	if (backend.kind === "blockdev") await qmp.run("blockdev-add", backend.properties);
	else if (backend.kind === "netdev") await qmp.run("netdev_add", backend.properties);
	else if (backend.kind === "object") await qmp.run("object-add", backend.properties);
	else await qmp.run("chardev-add", { id: backend.id, backend: backend.backend });
}
