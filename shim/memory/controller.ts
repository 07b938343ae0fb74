/**
 * The memory of all VMs of a node. One timer: slow while all is well, quick while memory is short or a balloon holds some, none while there is nothing to
 * look after; the kernel's pressure trigger wakes it at once. What to do is decided in `decide.ts`.
 */

import { explain } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { mountedHierarchies } from "../host/cgroups.ts";
import type { CgroupHierarchy } from "../host/cgroups.ts";
import { limitedGroups, onPressure, sampleMemory, unwatch, watchGroup, watchProcess } from "../host/memory.ts";
import type { MemorySample, Watch } from "../host/memory.ts";
import { assess, AT_EASE, decide } from "./decide.ts";
import type { Assessment, Place, PlaceState } from "./decide.ts";
import { askGuests } from "./guests.ts";
import type { Spare } from "./ports.ts";
import { summarise } from "./summary.ts";
import type { MemorySummary } from "./summary.ts";
import type { VmMemory } from "./vm-memory.ts";

/** What the controller is told once. */
export interface MemoryOptions {
	/** What shall be available on the node. */
	readonly reserveBytes: number;
	/** What all VMs together may hold; 0: whatever the node has. */
	readonly budgetBytes: number;
	readonly log: Log;
}

const BYTES_PER_MIB = 1024 * 1024;
const SLOW_MS = 5_000;
const QUICK_MS = 1_000;
/** Tasks that wait for so long within the window wake the controller; the window is one that the kernel takes of anybody. */
const STALL_MS = 200;
const STALL_WINDOW_MS = 2_000;
/** The node's place among those that can be short; the budget's is the next one. */
export const NODE = 0;
export const BUDGET = 1;

interface Group {
	readonly path: string;
	readonly watch: Watch;
	users: number;
	state: PlaceState;
}

/** The node's controller. Whoever makes it closes it. */
export class MemoryController {
	readonly #options: MemoryOptions;
	readonly #vms = new Set<VmMemory>();
	readonly #groups = new Map<string, Group>();
	#spare: Spare | undefined;
	#node: PlaceState = AT_EASE;
	#budget: PlaceState = AT_EASE;
	#timer: NodeJS.Timeout | undefined;
	#endTrigger: (() => void) | undefined;
	#running: Promise<void> | undefined;
	#again = false;
	#closed = false;
	#saidConfidential = false;
	#looks = 0;

	constructor(options: MemoryOptions) {
		this.#options = options;
	}

	/** Names what gives up memory before any pod does. */
	use(spare: Spare): void {
		this.#spare = spare;
		this.#schedule();
	}

	/**
	 * Looks after a VM from now on.
	 * @returns how to end it
	 */
	add(vm: VmMemory): () => void {
		this.#vms.add(vm);
		if (vm.exempt === "confidential" && !this.#saidConfidential) {
			this.#saidConfidential = true;
			this.#options.log.warn(
				"memory of confidential pods stays with them: it is encrypted, and a balloon would give nothing back to the node",
			);
		}
		this.#schedule();
		return () => {
			this.#vms.delete(vm);
			this.#end(vm);
			this.#schedule();
		};
	}

	/** Looks now: somebody has seen that memory is short. */
	wake(): void {
		if (this.#running !== undefined) {
			this.#again = true;
			return;
		}
		clearTimeout(this.#timer);
		// A timer that has fired must not stand in the way of the next one.
		this.#timer = undefined;
		if (this.#closed || !this.#needed) return;
		this.#running = this.#look()
			.catch((error: unknown) => this.#options.log.warn("looking after memory failed", { reason: explain(error) }))
			.finally(() => {
				this.#running = undefined;
				const again = this.#again;
				this.#again = false;
				// At most one look in a quick period, however often the kernel tells.
				this.#schedule(again ? QUICK_MS : undefined);
			});
	}

	/** The node's memory and its VMs', looked at for the question. */
	async summary(): Promise<MemorySummary> {
		this.#beginAll();
		const sample = await sampleMemory({ share: true });
		return summarise(sample, [...this.#vms], { ...this.#options, short: this.#node.short || this.#budget.short });
	}

	/** Ends the timer and the trigger; VMs keep what they have. */
	close(): void {
		this.#closed = true;
		this.#schedule();
		for (const vm of this.#vms) this.#end(vm);
		this.#vms.clear();
	}

	/** Something can give memory, or have it back. */
	get #needed(): boolean {
		return this.#spare?.kept === true || [...this.#vms].some((vm) => vm.exempt === undefined);
	}

	get #quick(): boolean {
		const short = this.#node.short || this.#budget.short || [...this.#groups.values()].some(({ state }) => state.short);
		return short || [...this.#vms].some(({ balloonBytes }) => balloonBytes > 0);
	}

	#schedule(ms?: number): void {
		if (this.#closed || !this.#needed) {
			clearTimeout(this.#timer);
			this.#timer = undefined;
			this.#endTrigger?.();
			this.#endTrigger = undefined;
			return;
		}
		this.#endTrigger ??= onPressure(STALL_MS, STALL_WINDOW_MS, () => this.wake());
		if (this.#timer !== undefined || this.#running !== undefined) return;
		this.#timer = setTimeout(() => this.wake(), ms ?? (this.#quick ? QUICK_MS : SLOW_MS)).unref();
	}

	/** VMs are watched from the next look on, which keeps the work off the way of their starts. */
	#beginAll(): void {
		const fresh = [...this.#vms].filter(({ watched }) => !watched);
		if (fresh.length === 0) return;
		const hierarchies = mountedHierarchies();
		for (const vm of fresh) this.#begin(vm, hierarchies);
	}

	#begin(vm: VmMemory, hierarchies: readonly CgroupHierarchy[]): void {
		const { pid, startTime, cgroup, log } = vm.options;
		vm.watched = true;
		try {
			vm.watch = watchProcess(pid, startTime);
			for (const path of cgroup === undefined ? [] : limitedGroups(cgroup, hierarchies)) {
				const group = this.#groups.get(path) ?? { path, watch: watchGroup(path, hierarchies), users: 0, state: AT_EASE };
				group.users += 1;
				this.#groups.set(path, group);
				vm.groups.push(path);
			}
		} catch (error) {
			log.warn("the VM's memory can't be watched", { reason: explain(error) });
		}
	}

	#end(vm: VmMemory): void {
		if (vm.watch !== undefined) unwatch(vm.watch);
		vm.watch = undefined;
		for (const path of vm.groups) {
			const group = this.#groups.get(path);
			if (group === undefined) continue;
			group.users -= 1;
			if (group.users > 0) continue;
			unwatch(group.watch);
			this.#groups.delete(path);
		}
		vm.groups.length = 0;
	}

	async #look(): Promise<void> {
		this.#beginAll();
		// CPU time costs more than pages: it is asked for when it may be wanted.
		const sample = await sampleMemory({ time: this.#quick });
		const nowMs = Date.now();
		const vms = [...this.#vms];
		for (const vm of vms) noteCpu(vm, sample, nowMs);
		const groups = [...this.#groups.values()];
		const places = this.#assess(sample, vms, groups, nowMs);
		const shrunk = await this.#shrinkSpare(places);
		const able = vms.filter((vm) => vm.exempt === undefined);
		// Who is idle is known with the next look.
		if (this.#quick && !able.some(({ cpu }) => cpu !== undefined)) {
			const first = await sampleMemory({ time: true });
			for (const vm of able) noteCpu(vm, first, Date.now());
		}
		// What the pool had counts with the next look: until then nothing more is taken, but who needs memory gets it.
		const wanting = shrunk ? places.map((place) => ({ ...place, wantedBytes: 0 })) : places;
		const short = wanting.some((place) => place.wantedBytes > 0);
		const asked = able.filter((vm) => vm.balloonBytes > 0 || (short && !vm.held(nowMs)));
		const views = await askGuests(asked, (vm) => placesOf(vm, groups), { look: this.#looks++, nowMs });
		await Promise.all(
			[
				...decide(
					views.map(({ view }) => view),
					wanting,
				),
			].map(([index, bytes]) => this.#apply(views[index]?.vm, bytes)),
		);
	}

	#assess(sample: MemorySample, vms: readonly VmMemory[], groups: readonly Group[], nowMs: number): Assessment[] {
		const { reserveBytes, budgetBytes, log } = this.#options;
		const node = assess(sample.node, this.#node, reserveBytes, nowMs);
		if (node.short !== this.#node.short) tell(log, "the node", sample.node, node.short);
		this.#node = node;
		const spareBytes = (this.#spare?.idle.memoryMib ?? 0) * BYTES_PER_MIB;
		const held = vms.reduce((sum, { watch }) => sum + (watch === undefined ? 0 : (sample.process(watch)?.residentBytes ?? 0)), spareBytes);
		const own: Place =
			budgetBytes === 0 ? ENDLESS : { totalBytes: budgetBytes, availableBytes: budgetBytes - held, stalledPercent: undefined };
		const budget = assess(own, this.#budget, reserveBytes, nowMs);
		if (budget.short !== this.#budget.short) tell(log, "the budget of all VMs (memory.budget_mib)", own, budget.short);
		this.#budget = budget;
		const rest = groups.map((group) => {
			const place = sample.group(group.watch) ?? ENDLESS;
			const assessment = assess(place, group.state, reserveBytes, nowMs);
			if (assessment.short !== group.state.short) tell(log, `the control group ${group.path}`, place, assessment.short);
			group.state = assessment;
			return assessment;
		});
		return [node, budget, ...rest];
	}

	/** Half of what waits for pods, each time. @returns whether there was any: what it had counts with the next look */
	async #shrinkSpare(places: readonly Assessment[]): Promise<boolean> {
		if (this.#spare?.kept !== true) return false;
		if (Math.max(places[NODE]?.wantedBytes ?? 0, places[BUDGET]?.wantedBytes ?? 0) === 0) return false;
		// With none that is ready as well: none is booted meanwhile, and one that boots is given up.
		const vms = Math.ceil(this.#spare.idle.count / 2);
		const mib = await this.#spare.shrink(vms);
		if (vms > 0) this.#options.log.info("VMs that waited for a pod are given up", { vms, mib });
		return mib > 0;
	}

	async #apply(vm: VmMemory | undefined, bytes: number): Promise<void> {
		if (vm === undefined || !this.#vms.has(vm)) return;
		const { balloonBytes: before } = vm;
		// It asked for memory, by having too little: it keeps what it gets.
		if (bytes < before && this.#isShort(vm)) vm.hold();
		try {
			await vm.setBalloon(bytes);
			vm.options.log.debug("balloon", { fromMib: before / BYTES_PER_MIB, toMib: bytes / BYTES_PER_MIB });
		} catch (error) {
			if (this.#vms.has(vm)) vm.options.log.warn("the VM's balloon can't be changed", { reason: explain(error) });
		}
	}

	#isShort(vm: VmMemory): boolean {
		return this.#node.short || this.#budget.short || vm.groups.some((path) => this.#groups.get(path)?.state.short === true);
	}
}

const ENDLESS: Place = { totalBytes: Number.MAX_SAFE_INTEGER, availableBytes: Number.MAX_SAFE_INTEGER, stalledPercent: undefined };
/** A VM that uses less of one processor than this waits for work. */
const IDLE_PART = 0.1;

/** A VM is idle when it has used little CPU time since it was last looked at. */
function noteCpu(vm: VmMemory, sample: MemorySample, nowMs: number): void {
	const cpuMs = vm.watch === undefined ? undefined : sample.process(vm.watch)?.cpuMs;
	const before = vm.cpu;
	vm.cpu = cpuMs === undefined ? undefined : { atMs: nowMs, cpuMs };
	vm.idle = before !== undefined && cpuMs !== undefined && cpuMs - before.cpuMs < IDLE_PART * (nowMs - before.atMs);
}

function placesOf(vm: VmMemory, groups: readonly Group[]): number[] {
	return [NODE, BUDGET, ...groups.flatMap(({ path }, index) => (vm.groups.includes(path) ? [BUDGET + 1 + index] : []))];
}

function tell(log: Log, name: string, { availableBytes, totalBytes, stalledPercent }: Place, short: boolean): void {
	const mib = (bytes: number): number => Math.round(bytes / BYTES_PER_MIB);
	const fields = { availableMib: mib(availableBytes), totalMib: mib(totalBytes), stalledPercent };
	if (short) log.warn(`memory is short in ${name}: VMs that wait for pods go first, idle pods give back what they can spare`, fields);
	else log.info(`memory is no longer short in ${name}`, fields);
}
