/** Which device sits where on PCI bus 0, and the device tree that `vm.info` shows. */
import { deviceManagerError } from "./api-error.ts";

/** A node of `vm.info`'s `device_tree`. */
export type DeviceNode = {
	readonly id: string;
	readonly resources: readonly unknown[];
	readonly parent?: string;
	readonly children: readonly string[];
	readonly pci_bdf?: string;
};

/** Slot 0 is the host bridge, slot 1 QEMU's ISA bridge with its power management: devices get 2 to 31. */
const SLOT_FIRST = 2;
const SLOT_LAST = 31;

/** The address of a slot as the API writes it: `0000:00:XX.0`. */
export const bdfOf = (slot: number): string => `0000:00:${slot.toString(16).padStart(2, "0")}.0`;

/** The slots of bus 0. A slot belongs to an id from `take` to `free`. */
export class PciSlots {
	readonly #taken = new Map<number, string>();

	/** Takes the wished slot, or the first free one. Throws the VMM's errors when it is taken or none is left. */
	take(id: string, wished?: number): number {
		if (wished !== undefined) {
			if (wished < SLOT_FIRST || this.#taken.has(wished)) {
				throw deviceManagerError("Failed to find an available PCI device ID", `Valid PCI device identifier but already used: ${wished}`);
			}
			this.#taken.set(wished, id);
			return wished;
		}
		for (let slot = SLOT_FIRST; slot <= SLOT_LAST; slot++) {
			if (this.#taken.has(slot)) continue;
			this.#taken.set(slot, id);
			return slot;
		}
		throw deviceManagerError("Failed to find an available PCI device ID", "Could not find an available device slot on the PCI bus");
	}

	free(slot: number): void {
		this.#taken.delete(slot);
	}
}

/** The device tree of a machine with these PCI devices (id to slot); `serial` says whether it has a serial port. */
export function deviceTree(devices: ReadonlyMap<string, number>, serial: boolean): Record<string, DeviceNode> {
	const tree: Record<string, DeviceNode> = { __ioapic: { id: "__ioapic", resources: [], children: [] } };
	if (serial) tree["__serial"] = { id: "__serial", resources: [], children: [] };
	for (const [id, slot] of devices) {
		const parent = `_virtio-pci-${id}`;
		tree[id] = { id, resources: [], parent, children: [] };
		tree[parent] = { id: parent, resources: [], children: [id], pci_bdf: bdfOf(slot) };
	}
	return tree;
}
