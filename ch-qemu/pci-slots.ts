/**
 * Which device sits where on the PCI segments, and the device tree that `vm.info` shows.
 *
 * The PC that QEMU makes has one segment. A further one is a bus behind a bridge: segment 1 is bus 1 of segment 0, and the addresses that the API
 * gives are those that the guest sees (`0000:01:05.0`, where the real VMM has `0001:00:05.0`).
 */
import { deviceManagerError } from "./api-error.ts";

/** A node of `vm.info`'s `device_tree`. */
export type DeviceNode = {
	readonly id: string;
	readonly resources: readonly unknown[];
	readonly parent?: string;
	readonly children: readonly string[];
	readonly pci_bdf?: string;
};

/** Where a device is. */
export type PciPlace = { readonly segment: number; readonly slot: number };

/** Slot 0 is the host bridge, slot 1 QEMU's ISA bridge with its power management: devices get 2 to 31. */
const SLOT_FIRST = 2;
const SLOT_LAST = 31;
/** Behind a bridge, slot 0 keeps its memory window open (see `bridgeDevices`). */
const BRIDGED_SLOT_FIRST = 1;

/** Most segments of a VM: each but the first takes a slot of the first. */
export const SEGMENTS_MAX = 16;

/** The slot of the bridge to a further segment. Guests number buses in the order of their bridges' slots. */
export const bridgeSlot = (segment: number, segments: number): number => SLOT_LAST + 1 - segments + segment;

const hex = (number: number): string => number.toString(16).padStart(2, "0");

/** The address of a place as the API writes it: `0000:BB:SS.0`. */
export const bdfOf = ({ segment, slot }: PciPlace): string => `0000:${hex(segment)}:${hex(slot)}.0`;

/**
 * The slots of all segments. One belongs to an id from `take` to `free`.
 *
 * A freed slot is given again as late as can be. Each time when anything comes or goes, QEMU tells the guest of every device that it is to let go
 * (hw/acpi/pcihp.c: reading the "down" field does not clear it). So the guest may eject a slot twice, and the second time hits what is there by then.
 */
export class PciSlots {
	readonly #taken = new Map<string, string>();
	/** When slots became free, as a count of such times. */
	readonly #freed = new Map<string, number>();
	#frees = 0;
	readonly #segments: number;

	constructor(segments = 1) {
		this.#segments = segments;
		for (let segment = 1; segment < segments; segment++)
			this.#taken.set(bdfOf({ segment: 0, slot: bridgeSlot(segment, segments) }), "bridge");
	}

	/**
	 * Takes the wished slot, or the first one that was never in use, or the one that is free for the longest time.
	 * Throws the VMM's errors when it is taken or none is left.
	 */
	take(id: string, segment = 0, wished?: number): number {
		if (segment >= this.#segments) throw deviceManagerError(`Invalid PCI segment id: ${segment}`);
		const first = segment === 0 ? SLOT_FIRST : BRIDGED_SLOT_FIRST;
		if (wished !== undefined) {
			if (wished < first || this.#taken.has(bdfOf({ segment, slot: wished }))) {
				throw deviceManagerError("Failed to find an available PCI device ID", `Valid PCI device identifier but already used: ${wished}`);
			}
			this.#taken.set(bdfOf({ segment, slot: wished }), id);
			return wished;
		}
		let chosen: number | undefined;
		for (let slot = first; slot <= SLOT_LAST; slot++) {
			if (this.#taken.has(bdfOf({ segment, slot }))) continue;
			if (chosen === undefined || this.#freedAt({ segment, slot }) < this.#freedAt({ segment, slot: chosen })) chosen = slot;
		}
		if (chosen === undefined)
			throw deviceManagerError("Failed to find an available PCI device ID", "Could not find an available device slot on the PCI bus");
		this.#taken.set(bdfOf({ segment, slot: chosen }), id);
		return chosen;
	}

	free(place: PciPlace): void {
		this.#taken.delete(bdfOf(place));
		this.#freed.set(bdfOf(place), ++this.#frees);
	}

	#freedAt(place: PciPlace): number {
		return this.#freed.get(bdfOf(place)) ?? 0;
	}
}

/** The device tree of a machine with these PCI devices; `serial` says whether it has a serial port. */
export function deviceTree(devices: ReadonlyMap<string, PciPlace>, serial: boolean): Record<string, DeviceNode> {
	const tree: Record<string, DeviceNode> = { __ioapic: { id: "__ioapic", resources: [], children: [] } };
	if (serial) tree["__serial"] = { id: "__serial", resources: [], children: [] };
	for (const [id, place] of devices) {
		const parent = `_virtio-pci-${id}`;
		tree[id] = { id, resources: [], parent, children: [] };
		tree[parent] = { id: parent, resources: [], children: [id], pci_bdf: bdfOf(place) };
	}
	return tree;
}
