/**
 * Snapshots: a folder with the real VMM's three files. `config.json` is the VM's configuration, `memory-ranges` its memory with holes where the guest never was,
 * `state.json` all else: QEMU's own stream of device states, where devices sit, and the vsock device, which QEMU can't save.
 */
import { closeSync, mkdtempSync, openSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { copyData } from "../native/src/file.ts";
import { messageOf, osErrorText, VmmError } from "./api-error.ts";
import { within } from "./child.ts";
import type { Places } from "./device-set.ts";
import { plugVsock } from "./hotplug.ts";
import type { Machine } from "./machine.ts";
import type { Qmp, QmpData } from "./qmp.ts";
import type { QemuDevice } from "./qemu-devices.ts";
import { decode } from "./schema.ts";
import { VM, type VmConfig } from "./vm-config.ts";
import { type FunctionState, readFunction, writeFunction } from "./virtio-function.ts";
import type { Ports } from "./vsock-backend.ts";

const CONFIG = "config.json";
const STATE = "state.json";
const MEMORY = "memory-ranges";

/** What a machine is beside its configuration and its memory. */
export type MachineState = {
	readonly places: Places;
	readonly vsock: VsockState | null;
	/** QEMU's stream, base64. */
	readonly stream: string;
};

type VsockState = { readonly function: FunctionState; readonly connections: readonly Ports[] };

/** What a snapshot's folder holds. */
export type Snapshot = { readonly config: VmConfig; readonly state: MachineState; readonly memoryFile: string };

const MIGRATION_LIMIT_MS = 120_000;
const LAST_WORDS_MS = 1_000;
/** QEMU's default holds the copy back for a guest that runs meanwhile. */
const NO_LIMIT_BYTES = 1024 ** 4;

/** QEMU's registers for devices that leave (docs/specs/acpi_pci_hotplug.rst): the bus by number, and a bit for each slot to be ejected. */
const EJECT_PORT = 0xae08;
const EJECT_BUS_PORT = 0xae10;

const unsendable = (...chain: string[]): VmmError =>
	new VmmError(500, "Cannot send VM snapshot", "Failed to send migratable component snapshot", ...chain);
const unreceivable = (...chain: string[]): VmmError =>
	new VmmError(500, "Cannot restore VM", "Failed to receive migratable component snapshot", ...chain);

/** Writes a paused machine into an existing folder. The machine stays as it was, but the connections over its vsock are gone. */
export async function takeSnapshot(machine: Machine, folder: string): Promise<void> {
	const { memory } = machine.config;
	if (machine.devices.all.has("mem0") || (await piecesOf(machine)) > 0)
		throw unsendable("ch-qemu takes no snapshot of a VM with added memory");
	create(join(folder, CONFIG), JSON.stringify(machine.config), "VM config");
	for (const device of leaving(machine)) await eject(machine, device);
	const places = machine.devices.places;
	const device = [...machine.devices.all.values()].find(({ type }) => type === "vsock");
	const vsock = device === undefined ? null : await takeVsock(machine, device);
	try {
		const stream = await saveDevices(machine);
		const state: MachineState = { places, vsock, stream };
		create(join(folder, STATE), JSON.stringify(state), "VM state");
		await copyMemory(memoryOf(machine.pid, memory.size), join(folder, MEMORY), "wx");
	} catch (error) {
		throw error instanceof VmmError ? error : unsendable(messageOf(error));
	} finally {
		if (vsock !== null) await putVsock(machine, vsock);
	}
}

/** Reads a snapshot's folder. Throws the real VMM's errors. */
export function readSnapshot(folder: string): Snapshot {
	const config = parse(join(folder, CONFIG), "VM config", (text) => decode<VmConfig>(VM, text));
	const state = parse(join(folder, STATE), "VM state", (text) => JSON.parse(text) as MachineState);
	for (const { id, fds } of config.net ?? [])
		if (fds !== undefined)
			throw new VmmError(500, "Failed to validate config", `Net id ${id ?? ""} is associated with FDs and is required`);
	return { config, state, memoryFile: join(folder, MEMORY) };
}

/** Fills a machine that was started to wait for it; its guest stands still afterwards. */
export async function fillMachine(machine: Machine, { state, memoryFile, config }: Snapshot): Promise<void> {
	const { qmp } = machine;
	await copyMemory(memoryFile, memoryOf(machine.pid, config.memory.size), "r+");
	await prepare(qmp);
	await withFile(async (path) => {
		writeFileSync(path, Buffer.from(state.stream, "base64"));
		const fd = openSync(path, "r");
		try {
			await qmp.give("snapshot", fd);
		} finally {
			closeSync(fd);
		}
		const done = migrated(machine);
		await Promise.all([done, qmp.run("migrate-incoming", { uri: "fd:snapshot" })]);
	});
	if (state.vsock !== null) await putVsock(machine, state.vsock);
}

async function saveDevices(machine: Machine): Promise<string> {
	const { qmp } = machine;
	await prepare(qmp);
	await qmp.run("migrate-set-parameters", { "max-bandwidth": NO_LIMIT_BYTES });
	return withFile(async (path) => {
		const fd = openSync(path, "wx");
		try {
			await qmp.give("snapshot", fd);
		} finally {
			closeSync(fd);
		}
		const done = migrated(machine);
		await Promise.all([done, qmp.run("migrate", { uri: "fd:snapshot" })]);
		return readFileSync(path).toString("base64");
	});
}

/** The guest's memory is not part of the stream. */
async function prepare(qmp: Qmp): Promise<void> {
	const on = (capability: string): QmpData => ({ capability, state: true });
	await qmp.run("migrate-set-capabilities", { capabilities: [on("x-ignore-shared"), on("events")] });
}

/** Resolves when the stream is through. */
function migrated(machine: Machine): Promise<void> {
	const { qmp, ended } = machine;
	let listen: (name: string, data: QmpData) => void = () => undefined;
	const done = new Promise<void>((resolve, reject) => {
		listen = (name, { status }) => {
			if (name !== "MIGRATION") return;
			if (status === "completed") resolve();
			else if (status === "failed") void whyFailed(machine).then((why) => reject(new Error(why)));
		};
		qmp.on("event", listen);
		void ended.then((complaints) => reject(new Error(complaints === "" ? "QEMU ended" : complaints)));
	});
	return within(MIGRATION_LIMIT_MS, "QEMU's state is not through", done).finally(() => qmp.off("event", listen));
}

async function whyFailed({ qmp, ended }: Machine): Promise<string> {
	const asked = qmp.run("query-migrate").then((info) => (info as { "error-desc"?: string })["error-desc"]);
	// What comes in and is wrong is QEMU's end, and told on its standard error.
	return (await asked.catch(() => undefined)) ?? (await within(LAST_WORDS_MS, "QEMU goes on", ended).catch(() => "QEMU does not say why"));
}

/** Takes the vsock device away behind the guest's back. QEMU saves no machine that has one. */
async function takeVsock(machine: Machine, device: QemuDevice): Promise<VsockState> {
	if (device.segment !== 0) throw unsendable("ch-qemu takes no snapshot of a VM whose vsock device is on a further PCI segment");
	const state = await readFunction(await machine.bus, { bus: 0, slot: device.slot });
	await eject(machine, device);
	return { function: state, connections: await machine.takeConnections() };
}

/** Devices that were told to go, and that the guest, which stands still, has not let go yet: the configuration knows them no more. */
function leaving({ config, devices }: Machine): QemuDevice[] {
	const known = [config.disks, config.net, config.fs].flatMap((list) => (list ?? []).map(({ id }) => id));
	return [...devices.all.values()].filter(({ id, type, segment }) => segment === 0 && LEAVING_TYPES.has(type) && !known.includes(id));
}

const LEAVING_TYPES: ReadonlySet<string> = new Set(["block", "net", "fs"]);

/** What the guest does when it lets a device of the first PCI segment go. */
async function eject(machine: Machine, device: QemuDevice): Promise<void> {
	const bus = await machine.bus;
	const gone = machine.moved(device);
	const selected = await bus.inl(EJECT_BUS_PORT);
	await bus.outl(EJECT_BUS_PORT, 0);
	await bus.outl(EJECT_PORT, 2 ** device.slot);
	await bus.outl(EJECT_BUS_PORT, selected);
	await gone;
}

/** Puts it back as it was. */
async function putVsock(machine: Machine, { function: state, connections }: VsockState): Promise<void> {
	const { vsock } = machine.config;
	if (vsock === undefined) return;
	const { segment, slot } = await plugVsock(machine, vsock, connections);
	await writeFunction(await machine.bus, { bus: segment, slot }, state);
}

async function piecesOf({ qmp }: Machine): Promise<number> {
	return ((await qmp.run("query-memory-devices")) as unknown[]).length;
}

/** The guest's memory as a file: QEMU's memfd of that size. */
function memoryOf(pid: number, sizeBytes: number): string {
	const folder = `/proc/${pid}/fd`;
	const found = readdirSync(folder)
		.map((name) => join(folder, name))
		.find((path) => isMemory(path) && statSync(path).size === sizeBytes);
	if (found === undefined) throw new Error(`QEMU (process ${pid}) holds no memory of ${sizeBytes} bytes`);
	return found;
}

function isMemory(path: string): boolean {
	try {
		return readlinkSync(path).startsWith("/memfd:memory-backend-memfd");
	} catch {
		// It was closed meanwhile.
		return false;
	}
}

async function copyMemory(from: string, to: string, flags: "wx" | "r+"): Promise<void> {
	const source = openSync(from, "r");
	try {
		const target = openSync(to, flags);
		try {
			await copyData(source, target);
		} finally {
			closeSync(target);
		}
	} finally {
		closeSync(source);
	}
}

async function withFile<T>(work: (path: string) => Promise<T>): Promise<T> {
	const folder = mkdtempSync("/tmp/ch-qemu-");
	try {
		return await work(join(folder, "s"));
	} finally {
		rmSync(folder, { recursive: true, force: true });
	}
}

function create(path: string, text: string, what: string): void {
	try {
		writeFileSync(path, text, { flag: "wx" });
	} catch (error) {
		throw unsendable(`Error creating ${what} snapshot file`, osErrorText(error));
	}
}

function parse<T>(path: string, what: string, as: (text: string) => T): T {
	let text: string;
	try {
		text = readFileSync(path, "utf8");
	} catch (error) {
		throw unreceivable(`Error opening ${what} snapshot file "${path}"`, osErrorText(error));
	}
	try {
		return as(text);
	} catch (error) {
		throw unreceivable(`Error deserialising ${what} snapshot`, messageOf(error));
	}
}
