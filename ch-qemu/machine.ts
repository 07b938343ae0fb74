/**
 * One running machine: QEMU, its monitor, the vsock backend, and what happens to them.
 *
 * A machine is booted once and ended once. A guest that resets ends its machine too: the VMM boots another one, as the real one does.
 */
import type { StdioOptions } from "node:child_process";
import { EventEmitter } from "node:events";
import type { Duplex } from "node:stream";
import { closeSync, existsSync } from "node:fs";
import { join, dirname } from "node:path";
import { deviceManagerError, messageOf, VmmError } from "./api-error.ts";
import type { AcceleratorChoice } from "./accelerator.ts";
import { BareBus } from "./bare-bus.ts";
import { Child, within } from "./child.ts";
import { DeviceSet, type Places } from "./device-set.ts";
import type { Log } from "./log.ts";
import { openRoutingTable } from "./emulation.ts";
import { hostCounterKhz } from "./host-clock.ts";
import { MONITOR_FD, qemuArguments } from "./qemu-arguments.ts";
import type { QemuDevice } from "./qemu-devices.ts";
import { Qmp, type QmpData } from "./qmp.ts";
import type { Tools } from "./tools.ts";
import type { VmConfig } from "./vm-config.ts";
import { type Ports, VsockBackend, type VsockStart } from "./vsock-backend.ts";

/** What a machine is made with. */
export type Host = { readonly tools: Tools; readonly accelerators: AcceleratorChoice; readonly log: Log };

/** Why a machine ended by itself. */
export type MachineEnd = "power-off" | "reset" | "death";

const BOOT_LIMIT_MS = 60_000;
const QUIT_LIMIT_MS = 5_000;
const MOVE_LIMIT_MS = 10_000;

export class Machine extends EventEmitter<{ ended: [MachineEnd]; "device-removed": [device: QemuDevice]; panic: [] }> {
	readonly devices: DeviceSet;
	readonly qmp: Qmp;
	readonly host: Host;
	readonly config: VmConfig;
	paused = false;
	#vsock: VsockBackend | undefined;
	readonly #qemu: Child;
	#ending = false;
	#reason: MachineEnd = "death";
	#bus: Promise<BareBus> | undefined;
	/** A device that leaves behind the guest's back, and comes again. */
	#moving: { readonly name: string; readonly gone: () => void } | undefined;

	private constructor(host: Host, config: VmConfig, devices: DeviceSet, child: Child, qmp: Qmp, vsock: VsockBackend | undefined) {
		super();
		this.host = host;
		this.config = config;
		this.devices = devices;
		this.#qemu = child;
		this.qmp = qmp;
		this.#vsock = vsock;
		qmp.on("event", (name, data) => this.#onEvent(name, data));
		void child.ended.then(() => this.#onEnd());
	}

	/**
	 * Starts a machine; the guest runs when this resolves. With `places` it waits to be filled from a snapshot instead, and has no vsock device: QEMU takes
	 * nothing in where one is. Devices without an id get one in `config`. Throws the VMM's errors; nothing is left behind then.
	 */
	static async boot(host: Host, config: VmConfig, places?: Places): Promise<Machine> {
		const waits = places !== undefined;
		const devices = new DeviceSet(config.platform?.num_pci_segments, places);
		const { vsock: described, ...others } = config;
		const wanted = waits ? undefined : described;
		const vsock = wanted && VsockBackend.start(host.tools, wanted.socket, wanted.cid);
		let child: Child | undefined;
		let routes: number | undefined;
		try {
			devices.addAll(wanted === undefined ? others : config);
			const firmware = smallFirmware(host.tools.qemu);
			const accelerator = await host.accelerators.choose(config.payload?.kernel ?? "");
			const plan = { config, devices: [...devices.all.values()], accelerator, firmware, counterKhz: hostCounterKhz() };
			const args = qemuArguments({ ...plan, waits });
			host.log.debug(`${host.tools.qemu} ${args.join(" ")}`);
			routes = accelerator === "tcg" ? openRoutingTable() : undefined;
			const input = config.serial.mode === "Tty" ? "inherit" : "ignore";
			const stdio: StdioOptions = [input, "inherit", "pipe", "pipe", vsock?.peer ?? "ignore", routes ?? "ignore", ...devices.inherited];
			child = new Child(host.tools.leash, [host.tools.qemu, ...args], stdio);
			vsock?.handedOver();
			const qmp = await Qmp.open(child.process.stdio[MONITOR_FD] as Duplex, BOOT_LIMIT_MS);
			const machine = new Machine(host, config, devices, child, qmp, vsock);
			if (waits) machine.paused = true;
			else await machine.#settle();
			return machine;
		} catch (error) {
			await child?.kill();
			await vsock?.stop();
			if (vsock !== undefined && vsock.complaints !== "") throw deviceManagerError("Cannot create virtio-vsock backend", vsock.complaints);
			throw child === undefined ? error : bootError(child, error);
		} finally {
			if (routes !== undefined) closeSync(routes);
		}
	}

	/** QEMU's process. */
	get pid(): number {
		return this.#qemu.process.pid ?? 0;
	}

	/** Resolves when QEMU has ended, with what it complained about. */
	get ended(): Promise<string> {
		return this.#qemu.ended.then(() => this.#qemu.complaints);
	}

	/** The machine's buses from outside. */
	get bus(): Promise<BareBus> {
		this.#bus ??= BareBus.open(this.qmp);
		return this.#bus;
	}

	/** Stops the guest's processors. */
	async pause(): Promise<void> {
		await this.qmp.run("stop");
		this.paused = true;
	}

	async resume(): Promise<void> {
		await this.qmp.run("cont");
		this.paused = false;
	}

	/** Starts a backend for a vsock device that is plugged later: it connects to QEMU at `vhostSocket`. The machine owns it. */
	startVsock(path: string, cid: number, start: VsockStart): void {
		this.#vsock = VsockBackend.start(this.host.tools, path, cid, start);
	}

	/** Resolves when this device is gone, which is not told: it comes again, at the same place. */
	moved(device: QemuDevice): Promise<void> {
		const gone = new Promise<void>((resolve) => (this.#moving = { name: device.name, gone: resolve }));
		return within(MOVE_LIMIT_MS, `QEMU does not let ${device.id} go`, gone);
	}

	/** Ends the vsock back end, whose device is gone, and returns the connections that the guest had. */
	async takeConnections(): Promise<Ports[]> {
		const connections = (await this.#vsock?.connections()) ?? [];
		await this.stopVsock();
		return connections;
	}

	async stopVsock(): Promise<void> {
		await this.#vsock?.stop();
		this.#vsock = undefined;
	}

	/** Ends the machine: QEMU closes its images, then it is killed in any case. `ended` is not emitted. */
	async end(): Promise<void> {
		this.#ending = true;
		try {
			await within(QUIT_LIMIT_MS, "QEMU did not quit", Promise.race([this.qmp.run("quit").then(() => this.#qemu.ended), this.#qemu.ended]));
		} catch (error) {
			this.host.log.warn(`quit: ${messageOf(error)}`);
		}
		await this.#qemu.kill();
		await this.stopVsock();
	}

	/** What needs the monitor right after the start: a pty's name, the balloon's first size. */
	async #settle(): Promise<void> {
		const { serial, balloon, memory } = this.config;
		if (serial.mode === "Pty") {
			const chardevs = (await this.qmp.run("query-chardev")) as { label: string; filename: string }[];
			serial.file = chardevs.find((c) => c.label === "serial")?.filename.replace(/^pty:/, "") ?? "";
		}
		if (balloon !== undefined && balloon.size > 0)
			await this.qmp.run("balloon", { value: Math.max(memory.size - balloon.size, BALLOON_FLOOR_BYTES) });
	}

	#onEvent(name: string, data: QmpData): void {
		this.host.log.debug(`QEMU: ${name} ${JSON.stringify(data)}`);
		if (name === "SHUTDOWN") this.#reason = reasonOf(String(data["reason"]));
		else if (name === "GUEST_PANICKED") this.emit("panic");
		else if (name === "DEVICE_DELETED" && typeof data["device"] === "string") void this.#onDeleted(data["device"]);
	}

	/** The guest let a device go: its backends go too, then id and slot are free. */
	async #onDeleted(name: string): Promise<void> {
		const device = this.devices.byName(name);
		if (device === undefined) return;
		const moving = this.#moving?.name === name ? this.#moving : undefined;
		for (const backend of device.backends)
			await dropBackend(this.qmp, backend).catch((error: unknown) => this.host.log.warn(`${device.id}: ${messageOf(error)}`));
		if (moving !== undefined) {
			this.#moving = undefined;
			this.devices.lend(device.id);
			moving.gone();
			return;
		}
		if (device.type === "vsock") await this.stopVsock();
		this.devices.forget(device.id);
		this.emit("device-removed", device);
	}

	#onEnd(): void {
		if (this.#ending) return;
		this.#ending = true;
		if (this.#reason === "death") this.host.log.error(`QEMU died: ${this.#qemu.complaints}`);
		void this.stopVsock().then(() => this.emit("ended", this.#reason));
	}
}

/** What QEMU must leave to a guest, however large a balloon is asked for: QEMU refuses nothing at all. */
export const BALLOON_FLOOR_BYTES = 1024 * 1024;

type Backend = ReturnType<DeviceSet["get"]>["backends"][number];

async function dropBackend(qmp: Qmp, backend: Backend): Promise<void> {
	if (backend.kind === "blockdev") await qmp.run("blockdev-del", { "node-name": backend.properties["node-name"] });
	else if (backend.kind === "netdev") await qmp.run("netdev_del", { id: backend.properties["id"] });
	else if (backend.kind === "object") await qmp.run("object-del", { id: backend.properties["id"] });
	else await qmp.run("chardev-remove", { id: backend.id });
}

function reasonOf(reason: string): MachineEnd {
	if (reason === "guest-reset") return "reset";
	return reason === "guest-shutdown" ? "power-off" : "death";
}

/** What QEMU said when it ended during the start, as an error of the VMM. */
function bootError(child: Child, error: unknown): Error {
	if (error instanceof VmmError) return error;
	const said =
		child.complaints
			.split("\n")
			.at(-1)
			?.replace(/^\S*qemu-system-x86_64: /, "") ?? "";
	return imageLocked(said) ?? new VmmError(500, "QEMU could not start the VM", said === "" ? messageOf(error) : said);
}

/** QEMU's complaint about a lock as the real VMM's error; undefined for any other text. */
export function imageLocked(text: string, path = ""): VmmError | undefined {
	const lock = /Failed to get (?:shared )?"?(\w+)"? lock/.exec(text);
	if (lock === null) return undefined;
	return deviceManagerError(
		"Cannot lock images of all block devices",
		`Failed to get Write lock for disk image: ${path}`,
		"The file is already locked",
	);
}

function smallFirmware(qemu: string): string | undefined {
	return [join(dirname(qemu), "../share/qemu/qboot.rom"), "/usr/share/qemu/qboot.rom"].find((file) => existsSync(file));
}
