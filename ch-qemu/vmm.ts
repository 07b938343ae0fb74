/**
 * The VMM: at most one VM, its stored configuration and, while it is booted, its machine. One method per endpoint.
 *
 * Methods run one at a time (see `Turns`). They throw `VmmError` with the cause; the endpoint's own message is put in front by `routes.ts`.
 */
import { statSync } from "node:fs";
import { messageOf, VmmError, vmAlreadyCreated, vmConfigMissing, vmNotCreated, vmNotRunning } from "./api-error.ts";
import { countersJson } from "./counters.ts";
import { closeAll, type Descriptors } from "./descriptors.ts";
import type { EventMonitor } from "./event-monitor.ts";
import { plugDisk, plugFs, plugNet, plugVsock, unplug } from "./hotplug.ts";
import { type Host, Machine, type MachineEnd } from "./machine.ts";
import { checkPayload } from "./payload.ts";
import { bdfOf, SEGMENTS_MAX } from "./pci-slots.ts";
import type { QemuDevice } from "./qemu-devices.ts";
import { Resizer } from "./resize.ts";
import { fillMachine, readSnapshot, takeSnapshot } from "./snapshot.ts";
import type { Turns } from "./turns.ts";
import { validateConfig } from "./validate.ts";
import type { DiskConfig, FsConfig, NetConfig, PciCommon, PmemConfig, RestoreConfig, VmConfig, VsockConfig } from "./vm-config.ts";

/** The answer of an `add-*` call on a running VM; before boot there is none. */
export type Plugged = { readonly id: string; readonly bdf: string } | undefined;

type Running = { readonly machine: Machine; readonly resizer: Resizer };

/** The lists of devices that a configuration has. */
type DeviceList = "disks" | "net" | "fs" | "pmem" | "devices";

export class Vmm {
	readonly #host: Host;
	readonly #events: EventMonitor;
	readonly #turns: Turns;
	/** Called once when the guest ended the whole program: a power-off, or the death of QEMU. */
	readonly #onExit: (code: number) => void;
	#config: VmConfig | undefined;
	#running: Running | undefined;

	constructor(host: Host, events: EventMonitor, turns: Turns, onExit: (code: number) => void) {
		this.#host = host;
		this.#events = events;
		this.#turns = turns;
		this.#onExit = onExit;
	}

	create(config: VmConfig): void {
		if (this.#config !== undefined) throw vmAlreadyCreated();
		// Descriptors never come with vm.create: the real VMM drops the numbers and makes its own taps.
		for (const net of config.net ?? []) delete net.fds;
		this.#config = config;
	}

	async boot(): Promise<void> {
		if (this.#running !== undefined) throw vmAlreadyCreated();
		this.#events.emit("vm", "booting");
		if (this.#config === undefined) throw vmConfigMissing();
		await this.#start(this.#config);
		this.#events.emit("vm", "booted");
	}

	async shutdown(): Promise<void> {
		const { machine } = this.#mustRun();
		this.#running = undefined;
		await machine.end();
		this.#events.emit("vm", "shutdown");
	}

	async reboot(): Promise<void> {
		this.#events.emit("vm", "rebooting");
		if (this.#running === undefined || this.#config === undefined) throw vmNotCreated();
		const { machine } = this.#running;
		this.#running = undefined;
		await machine.end();
		await this.#start(this.#config);
		this.#events.emit("vm", "rebooted");
	}

	async delete(): Promise<void> {
		if (this.#config === undefined) return;
		if (this.#running !== undefined) await this.shutdown();
		for (const net of this.#config.net ?? []) closeAll(net.fds ?? []);
		this.#config = undefined;
		this.#events.emit("vm", "deleted");
	}

	/** The end of the VMM: the VM goes first. The caller ends the program. */
	async vmmShutdown(): Promise<void> {
		await this.delete();
		this.#events.emit("vmm", "shutdown");
	}

	async pause(): Promise<void> {
		const { machine } = this.#mustRun();
		this.#events.emit("vm", "pausing");
		if (machine.paused)
			throw new VmmError(
				500,
				"Cannot pause VM",
				"Failed to pause migratable component",
				"Invalid transition: InvalidStateTransition(Paused, Paused)",
			);
		await machine.pause();
		this.#events.emit("vm", "paused");
	}

	async resume(): Promise<void> {
		const { machine } = this.#mustRun();
		this.#events.emit("vm", "resuming");
		if (!machine.paused)
			throw new VmmError(
				500,
				"Cannot resume VM",
				"Failed to resume migratable component",
				"Invalid transition: InvalidStateTransition(Running, Running)",
			);
		await machine.resume();
		this.#events.emit("vm", "resumed");
	}

	/** The JSON text of `vm.info`. */
	async infoJson(): Promise<string> {
		const config = this.#mustExist();
		if (this.#running === undefined) return JSON.stringify({ config, state: "Created", memory_actual_size: config.memory.size });
		const { machine, resizer } = this.#running;
		const actual = config.memory.size - (await resizer.balloonedBytes()) + (await resizer.pluggedBytes());
		const state = machine.paused ? "Paused" : "Running";
		return JSON.stringify({
			config,
			state,
			memory_actual_size: Math.max(0, actual),
			device_tree: machine.devices.tree(config.serial.mode !== "Off"),
		});
	}

	async countersJson(): Promise<string> {
		return countersJson(this.#mustRun().machine);
	}

	async powerButton(): Promise<void> {
		await this.#mustRun().machine.qmp.run("system_powerdown");
	}

	async nmi(): Promise<void> {
		await this.#mustRun().machine.qmp.run("inject-nmi");
	}

	async resize(wanted: { desired_vcpus?: number; desired_ram?: number; desired_balloon?: number }): Promise<void> {
		const { cpus, memory, balloon } = this.#mustExist();
		const resizer = this.#running?.resizer;
		if (resizer !== undefined) this.#events.emit("vm", "resizing");
		if (wanted.desired_vcpus !== undefined) {
			await resizer?.vcpus(wanted.desired_vcpus);
			cpus.boot_vcpus = wanted.desired_vcpus;
		}
		if (wanted.desired_ram !== undefined) {
			await resizer?.ram(wanted.desired_ram);
			if (resizer === undefined || memory.hotplug_method === "Acpi") memory.size = wanted.desired_ram;
			else if (wanted.desired_ram > memory.size) memory.hotplugged_size = wanted.desired_ram - memory.size;
			else delete memory.hotplugged_size;
		}
		if (wanted.desired_balloon !== undefined) {
			await resizer?.balloon(wanted.desired_balloon);
			if (balloon !== undefined) balloon.size = wanted.desired_balloon;
		}
		if (resizer !== undefined) this.#events.emit("vm", "resized");
	}

	async resizeDisk(id: string, sizeBytes: number): Promise<void> {
		this.#mustExist();
		if (this.#running === undefined) throw new VmmError(500, "Failed resizing a disk image");
		const { machine } = this.#running;
		const device = machine.devices.get(id);
		const image = device.backends.find((backend) => backend.kind === "blockdev");
		if (image?.kind !== "blockdev")
			throw new VmmError(404, "Error from device manager", `Failed to find device corresponding to the given identifier: ${id}`);
		await machine.qmp.run("block_resize", { "node-name": image.properties["node-name"], size: sizeBytes }).catch((error: unknown) => {
			throw new VmmError(500, "Error from device manager", "Disk resize error", messageOf(error));
		});
	}

	resizeZone(): void {
		this.#mustExist();
		throw new VmmError(500, "Failed resizing a memory zone");
	}

	addDisk(disk: DiskConfig): Promise<Plugged> {
		return this.#add("disks", disk, (machine) => plugDisk(machine, disk));
	}

	/** Descriptors that come with the request are the device's taps; numbers in the body mean nothing. They stay open for a machine that is booted again. */
	async addNet(net: NetConfig, descriptors: Descriptors): Promise<Plugged> {
		this.#mustExist();
		delete net.fds;
		const fds = net.tap === undefined ? descriptors.take() : [];
		if (net.tap === undefined && fds.length === 0)
			throw new VmmError(500, "ch-qemu makes no taps of its own accord for vm.add-net", 'give "tap", or send descriptors with the request');
		if (fds.length > 0) net.fds = fds;
		try {
			return await this.#add("net", net, (machine) => plugNet(machine, net));
		} catch (error) {
			closeAll(fds);
			throw error;
		}
	}

	async addVsock(vsock: VsockConfig): Promise<Plugged> {
		const config = this.#mustExist();
		if (config.vsock !== undefined) throw new VmmError(500, "Too many virtio-vsock devices");
		validateConfig({ ...config, vsock });
		const device = this.#running === undefined ? undefined : await plugVsock(this.#running.machine, vsock);
		config.vsock = vsock;
		return pluggedOf(device);
	}

	addFs(fs: FsConfig): Promise<Plugged> {
		return this.#add("fs", fs, (machine) => plugFs(machine, fs));
	}

	/** Devices that QEMU could have but a stand-in has not: stored before boot as the real VMM does, refused afterwards. */
	addUnsupported(list: "pmem" | "devices", device: PmemConfig | PciCommon, what: string): Promise<Plugged> {
		return this.#add(list, device, () => {
			throw new VmmError(500, "Error from device manager", `ch-qemu has no ${what}`);
		});
	}

	/** Kinds of devices whose configuration is not kept either. */
	refuseDevice(what: string): never {
		this.#mustExist();
		throw new VmmError(500, "Error from device manager", `ch-qemu has no ${what}`);
	}

	async removeDevice(id: string): Promise<void> {
		const config = this.#mustExist();
		if (this.#running !== undefined) {
			await unplug(this.#running.machine, id);
			dropFromConfig(config, id);
		} else if (!dropFromConfig(config, id)) throw new VmmError(404, `No device with id "${id}" to remove`);
	}

	/** Writes the paused VM into a folder, `file://` and its path. */
	async snapshot(url: string): Promise<void> {
		const { machine } = this.#mustRun();
		this.#events.emit("vm", "snapshotting");
		if (!machine.paused)
			throw new VmmError(500, "Cannot snapshot VM", "Failed to snapshot migratable component", "Trying to snapshot while VM is running");
		this.#events.emit("vm", "snapshotted");
		await takeSnapshot(machine, folderOf(url, "Cannot send VM snapshot"));
	}

	/** Makes the VM that a snapshot's folder holds; it is paused unless told to run. How its memory comes back is the same in both of the real VMM's modes. */
	async restore({ source_url: url, prefault, memory_restore_mode: mode, resume }: RestoreConfig): Promise<void> {
		if (this.#config !== undefined) throw vmAlreadyCreated();
		const snapshot = readSnapshot(folderOf(url, "Cannot restore VM"));
		if (prefault && mode === "OnDemand")
			throw new VmmError(500, "Failed to validate config", "'prefault' cannot be combined with 'memory_restore_mode=ondemand'");
		const machine = await Machine.boot(this.#host, snapshot.config, snapshot.state.places);
		try {
			await fillMachine(machine, snapshot);
		} catch (error) {
			await machine.end();
			throw error instanceof VmmError ? error : new VmmError(500, "Cannot restore VM", messageOf(error));
		}
		this.#config = snapshot.config;
		this.#follow(machine);
		this.#events.emit("vm", "restoring");
		this.#events.emit("vm", "restored");
		if (resume) await this.resume();
	}

	sendMigration(): never {
		const cause = this.#running === undefined ? "VM is not running" : "ch-qemu migrates no VMs";
		throw new VmmError(500, "Failed to send migratable component snapshot", cause);
	}

	#mustExist(): VmConfig {
		if (this.#config === undefined) throw vmNotCreated();
		return this.#config;
	}

	#mustRun(): Running {
		if (this.#running === undefined) throw vmNotRunning();
		return this.#running;
	}

	async #start(config: VmConfig): Promise<void> {
		let machine: Machine;
		try {
			checkPayload(config);
			refuseUnsupported(config);
			machine = await Machine.boot(this.#host, config);
		} catch (error) {
			// The real VMM takes the devices out of the configuration before it makes them, and a failure leaves them out: a second boot would lack them.
			for (const list of ["disks", "net", "fs", "pmem", "devices", "vsock"] as const)
				if (error instanceof VmmError && error.chain[0] === "Error from device manager") dropList(config, list);
			throw error;
		}
		this.#follow(machine);
	}

	#follow(machine: Machine): void {
		this.#running = { machine, resizer: new Resizer(machine) };
		machine.on("device-removed", (device) => this.#events.emit("vm", "device-removed", { id: device.id, bdf: bdfOf(device) }));
		machine.on("panic", () => this.#events.emit("guest", "panic"));
		machine.on("ended", (reason) => void this.#turns.run(() => this.#machineEnded(machine, reason)));
	}

	/** The guest ended its machine: a reset boots it again, everything else is the end of the program, with code 0 even when QEMU died. */
	async #machineEnded(machine: Machine, reason: MachineEnd): Promise<void> {
		if (this.#running?.machine !== machine) return;
		this.#host.log.info(`the machine ended: ${reason}`);
		if (reason === "reset") {
			try {
				await this.reboot();
				return;
			} catch (error) {
				this.#host.log.error(`reboot: ${messageOf(error)}`);
			}
		}
		await this.vmmShutdown();
		this.#onExit(0);
	}

	/** Checks a device against the whole configuration, plugs it into a running machine, stores it. */
	async #add(list: DeviceList, device: PciCommon, plug: (machine: Machine) => Promise<QemuDevice>): Promise<Plugged> {
		const config = this.#mustExist();
		const lists: Partial<Record<DeviceList, PciCommon[]>> = config;
		const longer = [...(lists[list] ?? []), device];
		validateConfig({ ...config, [list]: longer });
		const plugged = this.#running === undefined ? undefined : await plug(this.#running.machine);
		lists[list] = longer;
		return pluggedOf(plugged);
	}
}

const pluggedOf = (device: QemuDevice | undefined): Plugged => (device === undefined ? undefined : { id: device.id, bdf: bdfOf(device) });

function dropList(config: VmConfig, list: DeviceList | "vsock"): void {
	if (list === "net") for (const net of config.net ?? []) closeAll(net.fds ?? []);
	delete config[list];
}

function dropFromConfig(config: VmConfig, id: string): boolean {
	for (const list of ["disks", "net", "fs", "pmem", "devices"] as const) {
		const devices: PciCommon[] | undefined = config[list];
		const index = devices?.findIndex((device) => device.id === id) ?? -1;
		if (index < 0) continue;
		if (list === "net") closeAll(config.net?.[index]?.fds ?? []);
		devices?.splice(index, 1);
		return true;
	}
	if (config.vsock?.id !== id) return false;
	delete config.vsock;
	return true;
}

function refuseUnsupported(config: VmConfig): void {
	const segments = config.platform?.num_pci_segments ?? 1;
	if (segments < 1 || segments > SEGMENTS_MAX)
		throw new VmmError(500, "Error from device manager", `ch-qemu has 1 to ${SEGMENTS_MAX} PCI segments: ${segments}`);
	const lists = [
		["pmem", "persistent memory devices"],
		["devices", "passed-through devices"],
	] as const;
	for (const [list, what] of lists) {
		if ((config[list] ?? []).length > 0) throw new VmmError(500, "Error from device manager", `ch-qemu has no ${what}`);
	}
}

/** The folder that a snapshot's URL names. Throws the real VMM's words for one that can't be used. */
function folderOf(url: string, attempted: string): string {
	const refuse = (text: string): VmmError => new VmmError(500, attempted, "Failed to send migratable component snapshot", text);
	if (!url.startsWith("file://")) throw refuse(`Could not extract path from URL: ${url}`);
	const path = url.slice("file://".length);
	if (statSync(path, { throwIfNoEntry: false })?.isDirectory() !== true) throw refuse(`Destination is not a directory: "${path}"`);
	return path;
}
