/**
 * A virtio device's PCI function from outside: what its driver has set up is read, and set up again in a new one (PCI Local Bus 3.0, sections 3.2.2.3.2, 6 and 6.8.2; virtio 1.2,
 * section 4.1). For a device whose state QEMU does not keep.
 */
import type { BareBus, Width } from "./bare-bus.ts";

/** Bus and slot, as the guest numbers them. */
export type FunctionAddress = { readonly bus: number; readonly slot: number };

/** What a driver has set up. 64-bit addresses are in halves, the lower one first. */
export type FunctionState = {
	/** The configuration space's words by offset: base addresses, and what enables the function last. */
	readonly words: readonly (readonly [offset: number, value: number])[];
	readonly messages: readonly number[];
	/** Undefined: no driver has taken the device. */
	readonly driver: DriverState | undefined;
};

type DriverState = {
	readonly status: number;
	readonly features: readonly [number, number];
	readonly vector: number;
	readonly selected: number;
	readonly queues: readonly {
		readonly size: number;
		readonly vector: number;
		readonly enabled: number;
		readonly addresses: readonly number[];
	}[];
};

const ADDRESS_PORT = 0xcf8;
const DATA_PORT = 0xcfc;
const ENABLE = 0x8000_0000;

const COMMAND = 0x04;
const COMMAND_MASK = 0xffff;
const MEMORY_SPACE = 0x2;
const BAR_FIRST = 0x10;
const BAR_LAST = 0x24;
const CAPABILITIES = 0x34;
const INTERRUPT_LINE = 0x3c;
const CAP_MSIX = 0x11;
const CAP_VENDOR = 0x09;
const COMMON = 1;
const MSIX_ENTRY_WORDS = 4;

/** Fields of the common configuration. */
const FIELD = {
	driverFeatureSelect: 0x08,
	driverFeature: 0x0c,
	vector: 0x10,
	queues: 0x12,
	status: 0x14,
	queueSelect: 0x16,
	queueSize: 0x18,
	queueVector: 0x1a,
	queueEnable: 0x1c,
	/** Descriptors, driver's area, device's area: each of two words. */
	queueAddresses: 0x20,
} as const;
const ADDRESS_WORDS = 6;
const DRIVER_FOUND = 3;
const FEATURES_OK = 8;

/** Reads the function's state; a guest that stands still does not notice. */
export async function readFunction(bus: BareBus, address: FunctionAddress): Promise<FunctionState> {
	const port = new ConfigPort(bus, address);
	return port.use(async () => {
		const places = await findPlaces(port);
		const words: (readonly [number, number])[] = [];
		for (let offset = BAR_FIRST; offset <= BAR_LAST; offset += 4) words.push([offset, await port.read(offset)]);
		words.push([INTERRUPT_LINE, await port.read(INTERRUPT_LINE)]);
		words.push([places.msix, await port.read(places.msix)]);
		const command = (await port.read(COMMAND)) & COMMAND_MASK;
		words.push([COMMAND, command]);
		if ((command & MEMORY_SPACE) === 0) return { words, messages: [], driver: undefined };
		const messages: number[] = [];
		const { table, common } = await findWindows(port, places);
		for (let word = 0; word < places.vectors * MSIX_ENTRY_WORDS; word++) messages.push(await bus.read(4, table + BigInt(4 * word)));
		return { words, messages, driver: await readDriver(bus, common) };
	});
}

/** Sets a new function up as a driver had set up the one before. */
export async function writeFunction(bus: BareBus, address: FunctionAddress, state: FunctionState): Promise<void> {
	const port = new ConfigPort(bus, address);
	await port.use(async () => {
		const places = await findPlaces(port);
		for (const [offset, value] of state.words) await port.write(offset, value);
		if (state.messages.length === 0) return;
		const { table, common } = await findWindows(port, places);
		for (const [word, value] of state.messages.entries()) await bus.write(4, table + BigInt(4 * word), value);
		if (state.driver !== undefined) await writeDriver(bus, common, state.driver);
	});
}

async function readDriver(bus: BareBus, common: bigint): Promise<DriverState | undefined> {
	const at = fieldsOf(bus, common);
	const status = await at.read(1, FIELD.status);
	if (status === 0) return undefined;
	const selected = await at.read(2, FIELD.queueSelect);
	const feature = async (half: number): Promise<number> => {
		await at.write(4, FIELD.driverFeatureSelect, half);
		return at.read(4, FIELD.driverFeature);
	};
	const features = [await feature(0), await feature(1)] as const;
	const queues = [];
	const count = await at.read(2, FIELD.queues);
	for (let queue = 0; queue < count; queue++) {
		await at.write(2, FIELD.queueSelect, queue);
		const addresses = [];
		for (let word = 0; word < ADDRESS_WORDS; word++) addresses.push(await at.read(4, FIELD.queueAddresses + 4 * word));
		queues.push({
			size: await at.read(2, FIELD.queueSize),
			vector: await at.read(2, FIELD.queueVector),
			enabled: await at.read(2, FIELD.queueEnable),
			addresses,
		});
	}
	await at.write(2, FIELD.queueSelect, selected);
	return { status, features, vector: await at.read(2, FIELD.vector), selected, queues };
}

/** In the order of virtio 1.2, section 3.1.1. */
async function writeDriver(bus: BareBus, common: bigint, state: DriverState): Promise<void> {
	const at = fieldsOf(bus, common);
	await at.write(1, FIELD.status, DRIVER_FOUND & state.status);
	for (const [half, value] of state.features.entries()) {
		await at.write(4, FIELD.driverFeatureSelect, half);
		await at.write(4, FIELD.driverFeature, value);
	}
	await at.write(1, FIELD.status, (DRIVER_FOUND | FEATURES_OK) & state.status);
	await at.write(2, FIELD.vector, state.vector);
	for (const [queue, { size, vector, enabled, addresses }] of state.queues.entries()) {
		await at.write(2, FIELD.queueSelect, queue);
		if (size === 0) continue;
		await at.write(2, FIELD.queueSize, size);
		await at.write(2, FIELD.queueVector, vector);
		for (const [word, value] of addresses.entries()) await at.write(4, FIELD.queueAddresses + 4 * word, value);
		if (enabled === 1) await at.write(2, FIELD.queueEnable, 1);
	}
	await at.write(2, FIELD.queueSelect, state.selected);
	await at.write(1, FIELD.status, state.status);
}

type Fields = { read(width: Width, field: number): Promise<number>; write(width: Width, field: number, value: number): Promise<void> };

const fieldsOf = (bus: BareBus, common: bigint): Fields => ({
	read: (width, field) => bus.read(width, common + BigInt(field)),
	write: (width, field, value) => bus.write(width, common + BigInt(field), value),
});

/** The function's configuration space, over the two ports that the guest uses as well. */
class ConfigPort {
	readonly #bus: BareBus;
	readonly #base: number;

	constructor(bus: BareBus, { bus: number, slot }: FunctionAddress) {
		this.#bus = bus;
		this.#base = ENABLE + number * 0x1_0000 + slot * 0x800;
	}

	/** The guest may stand between its two accesses: the first one is put back. */
	async use<T>(work: () => Promise<T>): Promise<T> {
		const selected = await this.#bus.inl(ADDRESS_PORT);
		try {
			return await work();
		} finally {
			await this.#bus.outl(ADDRESS_PORT, selected);
		}
	}

	async read(offset: number): Promise<number> {
		await this.#bus.outl(ADDRESS_PORT, this.#base + offset);
		return this.#bus.inl(DATA_PORT);
	}

	async write(offset: number, value: number): Promise<void> {
		await this.#bus.outl(ADDRESS_PORT, this.#base + offset);
		await this.#bus.outl(DATA_PORT, value);
	}

	/** Where a base address register leads: memory of 32 or 64 bits. */
	async window(bar: number): Promise<bigint> {
		const low = await this.read(BAR_FIRST + 4 * bar);
		const high = (low & 0x6) === 0x4 ? await this.read(BAR_FIRST + 4 * (bar + 1)) : 0;
		return (BigInt(high) << 32n) + BigInt((low & ~0xf) >>> 0);
	}
}

type Places = {
	/** Offset of the capability for message-signalled interrupts. */
	readonly msix: number;
	readonly vectors: number;
	readonly tableBar: number;
	readonly tableOffset: number;
	readonly commonBar: number;
	readonly commonOffset: number;
};

async function findPlaces(port: ConfigPort): Promise<Places> {
	let msix: Pick<Places, "msix" | "vectors" | "tableBar" | "tableOffset"> | undefined;
	let common: Pick<Places, "commonBar" | "commonOffset"> | undefined;
	for (let at = (await port.read(CAPABILITIES)) & 0xfc; at !== 0; ) {
		const head = await port.read(at);
		if ((head & 0xff) === CAP_MSIX) {
			const place = await port.read(at + 4);
			msix = { msix: at, vectors: ((head >>> 16) & 0x7ff) + 1, tableBar: place & 0x7, tableOffset: (place & ~0x7) >>> 0 };
		} else if ((head & 0xff) === CAP_VENDOR && head >>> 24 === COMMON) {
			common = { commonBar: (await port.read(at + 4)) & 0xff, commonOffset: await port.read(at + 8) };
		}
		at = (head >>> 8) & 0xfc;
	}
	if (msix === undefined || common === undefined) throw new Error("the function is not one of a virtio device");
	return { ...msix, ...common };
}

async function findWindows(port: ConfigPort, places: Places): Promise<{ table: bigint; common: bigint }> {
	return {
		table: (await port.window(places.tableBar)) + BigInt(places.tableOffset),
		common: (await port.window(places.commonBar)) + BigInt(places.commonOffset),
	};
}
