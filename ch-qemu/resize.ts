/** Processors, memory and balloon of a running machine. */
import { deviceManagerError, VmmError, messageOf } from "./api-error.ts";
import { BALLOON_FLOOR_BYTES, type Machine } from "./machine.ts";
import { memoryBackend } from "./qemu-devices.ts";

/** Memory comes in pieces of this size, as the guest's memory blocks do. */
const MEMORY_STEP_BYTES = 128 * 1024 * 1024;
const MEMORY_SLOTS = 8;

type HotpluggableCpu = { type: string; props: Readonly<Record<string, number>>; "qom-path"?: string };

/** What was added to a machine since its start, and what is on its way out. */
export class Resizer {
	readonly #machine: Machine;
	/** Processors that are there, those included that the guest has not let go yet. */
	#vcpus: number;
	#vcpusLeaving = 0;
	/** Memory that the guest was given in all, by the boot and by pieces. */
	#ramBytes: number;
	readonly #bootBytes: number;
	#pieces = 0;

	constructor(machine: Machine) {
		this.#machine = machine;
		this.#vcpus = machine.config.cpus.boot_vcpus;
		this.#ramBytes = machine.config.memory.size;
		this.#bootBytes = machine.config.memory.size;
		machine.qmp.on("event", (name, data) => {
			const device = data["device"];
			if (name === "DEVICE_DELETED" && typeof device === "string" && device.startsWith("vcpu")) {
				this.#vcpus--;
				this.#vcpusLeaving--;
			}
		});
	}

	/** Adds or removes processors. Removal waits for the guest; until it agrees any number but the present one is refused with 429. */
	async vcpus(wanted: number): Promise<void> {
		if (wanted === this.#vcpus) return;
		const refuse = (text: string): VmmError => new VmmError(500, "Error from CPU manager", text);
		if (wanted < 1) throw refuse("Requested zero vCPUs");
		if (this.#vcpusLeaving > 0) throw new VmmError(429);
		if (wanted > this.#machine.config.cpus.max_vcpus) throw refuse("Requested vCPUs exceed maximum");
		const all = ((await this.#machine.qmp.run("query-hotpluggable-cpus")) as HotpluggableCpu[]).reverse();
		for (let i = this.#vcpus; i < wanted; i++) {
			const cpu = all[i];
			if (cpu === undefined || cpu["qom-path"] !== undefined) throw refuse(`QEMU has no free place for processor ${i}`);
			await this.#machine.qmp.run("device_add", { driver: cpu.type, id: `vcpu${i}`, ...cpu.props });
			this.#vcpus++;
		}
		for (let i = this.#vcpus - 1; i >= wanted; i--) {
			await this.#machine.qmp.run("device_del", { id: `vcpu${i}` }).catch((error: unknown) => {
				throw refuse(messageOf(error));
			});
			this.#vcpusLeaving++;
		}
	}

	/** Sets the guest's memory. With ACPI it only grows at once: a smaller size holds from the next boot on. */
	async ram(wantedBytes: number): Promise<void> {
		const { memory } = this.#machine.config;
		const refuse = (text: string): VmmError => new VmmError(500, "Memory manager error", text);
		if (memory.hotplug_method === "VirtioMem") return this.#virtioMem(wantedBytes, refuse);
		const more = wantedBytes - this.#ramBytes;
		if (more <= 0) return;
		if (more % MEMORY_STEP_BYTES !== 0) throw refuse("The requested hotplug memory addition is not a valid size");
		if (wantedBytes > this.#bootBytes + (memory.hotplug_size ?? 0)) throw refuse("Not enough space in the hotplug RAM region");
		if (this.#pieces >= MEMORY_SLOTS) throw refuse("No more slots for hotplugged memory");
		const name = `ram${this.#pieces++}`;
		await this.#machine.qmp.run("object-add", memoryBackend(name, more, memory));
		await this.#machine.qmp.run("device_add", { driver: "pc-dimm", id: `dimm-${name}`, memdev: name });
		this.#ramBytes = wantedBytes;
	}

	/** Sets how much the balloon takes. More than the guest has is no error: QEMU then takes all but a rest. */
	async balloon(wantedBytes: number): Promise<void> {
		if (this.#machine.config.balloon === undefined) throw deviceManagerError("Missing virtio-balloon, can't proceed as expected");
		await this.#machine.qmp
			.run("balloon", { value: Math.max(this.#ramBytes - wantedBytes, BALLOON_FLOOR_BYTES) })
			.catch((error: unknown) => {
				// The driver isn't up yet: QEMU holds no target for it.
				this.#machine.host.log.warn(`balloon: ${messageOf(error)}`);
			});
	}

	/** What the balloon holds now, in bytes; 0 without a balloon, or before its driver is up. */
	async balloonedBytes(): Promise<number> {
		if (this.#machine.config.balloon === undefined) return 0;
		try {
			const { actual } = (await this.#machine.qmp.run("query-balloon")) as { actual: number };
			return Math.max(0, this.#ramBytes - actual);
		} catch {
			return 0;
		}
	}

	/** What virtio-mem has given to the guest, in bytes. */
	async pluggedBytes(): Promise<number> {
		if (!this.#machine.devices.all.has("mem0")) return 0;
		const devices = (await this.#machine.qmp.run("query-memory-devices")) as { type: string; data: { size: number } }[];
		return devices.filter((d) => d.type === "virtio-mem").reduce((sum, d) => sum + d.data.size, 0);
	}

	async #virtioMem(wantedBytes: number, refuse: (text: string) => VmmError): Promise<void> {
		const more = wantedBytes - this.#bootBytes;
		const limit = this.#machine.config.memory.hotplug_size ?? 0;
		if (more < 0) throw refuse(`Desired RAM size (${wantedBytes}) is below the boot RAM size (${this.#bootBytes})`);
		if (more > limit) throw refuse("Not enough space in the hotplug RAM region");
		const device = this.#machine.devices.all.get("mem0");
		if (device === undefined) throw refuse("Not enough space in the hotplug RAM region");
		await this.#machine.qmp.run("qom-set", { path: `/machine/peripheral/${device.name}`, property: "requested-size", value: more });
	}
}
