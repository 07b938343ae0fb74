/** A node's memory, its VMs and those that wait, as a test makes them up: the memory controller sees nothing else. */
import { ShimError } from "../../shim/base/errors.ts";
import { Log } from "../../shim/base/log.ts";
import type { PlaceMemory, ProcessMemory, Watch } from "../../shim/host/memory.ts";
import { MemoryController } from "../../shim/memory/controller.ts";
import type { Exemption, GuestMemory, Spare, SpareVm, VmChange, VmState } from "../../shim/memory/ports.ts";
import type { MemorySource, Sample } from "../../shim/memory/source.ts";
import { VmMemory } from "../../shim/memory/vm-memory.ts";
import { ManualClock } from "./clock.ts";

export const MIB = 1024 * 1024;
export const RESERVE_MIB = 512;

/** How long the VMM of a VM that hangs is waited for by whoever changes it. */
const CHANGE_MS = 5_000;

/** Watches of groups are counted from here, those of processes are their numbers. */
const FIRST_GROUP = 1_000_000;

const process = (residentMib: number, cpuMs: number): ProcessMemory => ({
	residentBytes: residentMib * MIB,
	shareBytes: undefined,
	peakBytes: undefined,
	cpuMs,
});

/** A machine of 16 GiB. */
export class FalseNode implements MemorySource {
	readonly clock = new ManualClock();
	readonly controller: MemoryController;
	availableMib = 8_192;
	/** By path: limit and what is available. */
	readonly groups = new Map<string, { readonly totalMib: number; availableMib: number }>();
	readonly residentMib = new Map<number, number>();
	readonly cpuMs = new Map<number, number>();
	/** Who looks at the machine, and when. */
	readonly looksAtMs: number[] = [];
	readonly watches = new Set<Watch>();
	pressure: (() => void) | undefined;
	/** What happens while it is looked at. */
	sampled: () => void = () => undefined;
	/** It can't be looked at. */
	fails = false;
	/** No more groups can be watched. */
	full = false;
	#groupOf = new Map<number, string>();
	#ids = FIRST_GROUP;

	constructor(budgetMib = 0) {
		const log = new Log(() => undefined, "error");
		this.controller = new MemoryController({
			reserveBytes: RESERVE_MIB * MIB,
			budgetBytes: budgetMib * MIB,
			log,
			source: this,
			clock: this.clock,
		});
	}

	async sample(): Promise<Sample> {
		const nowMs = this.clock.nowMs();
		if (this.looksAtMs.at(-1) !== nowMs) this.looksAtMs.push(nowMs);
		await Promise.resolve();
		this.sampled();
		if (this.fails) throw new Error("EAGAIN");
		const place = (totalMib: number, availableMib: number): PlaceMemory => ({
			totalBytes: totalMib * MIB,
			availableBytes: availableMib * MIB,
			stalledPercent: 0,
		});
		return {
			node: place(16_384, this.availableMib),
			process: ({ ids: [id = 0] }) => {
				const resident = this.residentMib.get(id);
				return resident === undefined ? undefined : process(resident, this.cpuMs.get(id) ?? 0);
			},
			group: ({ ids: [id = 0] }) => {
				const group = this.groups.get(this.#groupOf.get(id) ?? "");
				return group === undefined ? undefined : place(group.totalMib, group.availableMib);
			},
		};
	}

	watchProcess(pid: number): Watch {
		return this.#watch(pid);
	}

	limitedGroups(path: string): string[] {
		return [...this.groups.keys()].filter((group) => path.startsWith(group));
	}

	watchGroup(path: string): Watch {
		const id = this.#ids++;
		this.#groupOf.set(id, path);
		return this.#watch(id);
	}

	#watch(id: number): Watch {
		if (this.full && id >= FIRST_GROUP) throw new Error("EMFILE");
		const watch = { ids: [id] };
		this.watches.add(watch);
		return watch;
	}

	unwatch(watch: Watch): void {
		this.watches.delete(watch);
	}

	onPressure(callback: () => void): () => void {
		this.pressure = callback;
		return () => (this.pressure = undefined);
	}
}

/** One VM of 1 GiB, idle, with 512 MiB that it could give, none of it free. */
export class FalsePod {
	readonly memory: VmMemory;
	readonly changes: VmChange[] = [];
	/** When its guest was asked. */
	readonly askedAtMs: number[] = [];
	availableMib = 640;
	freeMib = 0;
	/** Its VMM and its guest do not answer. */
	hangs = false;
	/** Its guest takes so long. */
	slowMs = 0;
	/** Processor time that an answer costs it. */
	answerCpuMs = 0;
	/** Its agent does not tell. */
	dumb = false;
	/** Its balloon does not get beyond this. */
	stuckMib = Number.POSITIVE_INFINITY;
	asked: number | undefined = 0;
	readonly #clock: ManualClock;
	readonly #work: (ms: number) => void;

	constructor(
		{ clock, controller, residentMib, cpuMs }: FalseNode,
		pid: number,
		{ cgroup, adopted = false, exempt }: { readonly cgroup?: string; readonly adopted?: boolean; readonly exempt?: Exemption } = {},
	) {
		this.#clock = clock;
		this.#work = (ms) => void cpuMs.set(pid, (cpuMs.get(pid) ?? 0) + ms);
		residentMib.set(pid, 700);
		this.memory = new VmMemory({
			name: `p${pid}`,
			namespace: "n",
			port: {
				change: async (change) => {
					if (this.hangs) await this.#timeout(CHANGE_MS);
					this.changes.push(change);
					if (change.balloonBytes !== undefined) this.asked = change.balloonBytes / MIB;
				},
				guest: (timeoutMs) => this.#guest(timeoutMs),
				state: (timeoutMs) => this.#state(timeoutMs),
			},
			sizeBytes: adopted ? undefined : 1024 * MIB,
			floorBytes: 128 * MIB,
			exempt,
			pid,
			startTime: 0n,
			cgroup,
			log: new Log(() => undefined, "error"),
			clock,
		});
		this.leave = controller.add(this.memory);
	}

	/** Ends it for the controller. */
	readonly leave: () => void;

	async #timeout(ms: number): Promise<never> {
		await new Promise<void>((resolve) => this.#clock.after(ms, resolve));
		throw new ShimError("guest.unreachable", "no answer");
	}

	async #guest(timeoutMs: number): Promise<GuestMemory> {
		this.askedAtMs.push(this.#clock.nowMs());
		this.#work(this.answerCpuMs);
		if (this.hangs) await this.#timeout(timeoutMs);
		if (this.slowMs > 0) await new Promise<void>((resolve) => this.#clock.after(this.slowMs, resolve));
		if (this.dumb) throw new ShimError("call.unimplemented", "no such call");
		return { freeBytes: this.freeMib * MIB, availableBytes: this.availableMib * MIB };
	}

	async #state(timeoutMs: number): Promise<VmState> {
		if (this.hangs) await this.#timeout(timeoutMs);
		const askedBytes = this.asked === undefined ? undefined : this.asked * MIB;
		return { sizeBytes: 1024 * MIB, askedBytes, actualBytes: Math.min(askedBytes ?? 0, this.stuckMib * MIB) };
	}

	get balloonMib(): number {
		return this.memory.balloonBytes / MIB;
	}
}

/** VMs that wait, each of which holds 100 MiB until a test ends it. */
export class FalseSpare implements Spare {
	kept = true;
	waiting: SpareVm[] = [];
	ending: SpareVm[] = [];
	allowedMib: number | undefined;
	readonly shrunk: number[] = [];
	changed: () => void = () => undefined;
	readonly #node: FalseNode;

	constructor(node: FalseNode, count: number) {
		this.#node = node;
		for (let pid = 1; pid <= count; pid++) {
			this.waiting.push({ pid, startTime: 0n });
			node.residentMib.set(pid, 100);
		}
	}

	shrink(count: number): number {
		this.shrunk.push(count);
		const vms = this.waiting.splice(0, count);
		this.ending.push(...vms);
		return vms.length;
	}

	/** Those that are being ended are gone, and the node has their memory. */
	end(): void {
		for (const { pid } of this.ending.splice(0)) {
			this.#node.residentMib.delete(pid);
			this.#node.availableMib += 100;
		}
	}

	allow(bytes: number): void {
		this.allowedMib = bytes / MIB;
	}

	follow(changed: () => void): void {
		this.changed = changed;
	}
}
