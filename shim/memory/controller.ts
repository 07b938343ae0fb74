/**
 * The memory of all VMs of a node. One timer: slow while all is well, quick while memory is short or a balloon holds some, none while there is nothing to
 * look after; the kernel's pressure trigger wakes it at once. What to do is decided in `decide.ts`. A look waits for nobody but guests that answer in time:
 * changes, and the ends of VMs that are given up, go on by themselves, and what comes of them counts in later looks.
 */

import { MONOTONIC } from "../base/clock.ts";
import type { Clock } from "../base/clock.ts";
import { explain } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { afterNeed, decide } from "./decide.ts";
import type { Assessment, VmView } from "./decide.ts";
import { ANSWER_MS, askGuests, chooseGuests } from "./guests.ts";
import { BUDGET, NODE, Places } from "./places.ts";
import type { Spare } from "./ports.ts";
import { HOST } from "./source.ts";
import type { MemorySource, Sample } from "./source.ts";
import { SpareWatch } from "./spare-watch.ts";
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
	/** This machine and this process's clock unless given. */
	readonly source?: MemorySource;
	readonly clock?: Clock;
}

const BYTES_PER_MIB = 1024 * 1024;
const SLOW_MS = 5_000;
const QUICK_MS = 1_000;
/** A VM that uses less of one processor than this waits for work. */
const IDLE_PART = 0.1;

/** The node's controller. Whoever makes it closes it. */
export class MemoryController {
	readonly #options: MemoryOptions;
	readonly #source: MemorySource;
	readonly #clock: Clock;
	readonly #places: Places;
	readonly #spareWatch: SpareWatch;
	readonly #vms = new Set<VmMemory>();
	/** Of which the log has that they can't be watched. */
	readonly #unwatchable = new WeakSet<VmMemory>();
	#spare: Spare | undefined;
	#endTimer: (() => void) | undefined;
	#endTrigger: (() => void) | undefined;
	#running = false;
	#again = false;
	#closed = false;
	#saidConfidential = false;
	#turns = 0;

	constructor(options: MemoryOptions) {
		this.#options = options;
		this.#source = options.source ?? HOST;
		this.#clock = options.clock ?? MONOTONIC;
		this.#places = new Places(options, this.#source);
		this.#spareWatch = new SpareWatch(this.#source);
	}

	/** Names what gives up memory before any pod does. */
	use(spare: Spare): void {
		this.#spare = spare;
		// One that is kept from now on is told soon how much memory there is for it.
		spare.follow(() => this.wake());
		this.wake();
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
		if (this.#running) {
			this.#again = true;
			return;
		}
		this.#endTimer?.();
		// A timer that has fired must not stand in the way of the next one.
		this.#endTimer = undefined;
		if (this.#closed || !this.#needed) {
			this.#schedule();
			return;
		}
		this.#running = true;
		void this.#look()
			.catch((error: unknown) => this.#options.log.warn("looking after memory failed", { reason: explain(error) }))
			.finally(() => {
				this.#running = false;
				const again = this.#again;
				this.#again = false;
				// At most one look in a quick period, however often the kernel tells.
				this.#schedule(again ? QUICK_MS : undefined);
			});
	}

	/** The node's memory and its VMs', looked at for the question. */
	async summary(): Promise<MemorySummary> {
		this.#beginAll();
		const { reserveBytes, budgetBytes } = this.#options;
		const sample = await this.#source.sample({ share: true });
		const waitingBytes = this.#spareWatch.residentBytes(sample);
		return summarise(sample, [...this.#vms], { reserveBytes, budgetBytes, waitingBytes, short: this.#places.nodeIsShort });
	}

	/** Ends the timer and the trigger; VMs keep what they have. */
	close(): void {
		this.#closed = true;
		this.#schedule();
		for (const vm of this.#vms) this.#end(vm);
		this.#vms.clear();
		this.#spareWatch.close();
	}

	/** Something can give memory, or have it back. */
	get #needed(): boolean {
		return this.#spare?.kept === true || [...this.#vms].some((vm) => vm.exempt === undefined);
	}

	get #quick(): boolean {
		return this.#places.anyIsShort || [...this.#vms].some(({ balloonBytes }) => balloonBytes > 0);
	}

	#schedule(ms?: number): void {
		if (this.#closed || !this.#needed) {
			this.#endTimer?.();
			this.#endTimer = undefined;
			this.#endTrigger?.();
			this.#endTrigger = undefined;
			return;
		}
		this.#endTrigger ??= this.#source.onPressure(() => this.wake());
		if (this.#endTimer !== undefined || this.#running) return;
		this.#endTimer = this.#clock.after(ms ?? (this.#quick ? QUICK_MS : SLOW_MS), () => this.wake());
	}

	/** VMs are watched from the next look on, which keeps the work off the way of their starts. */
	#beginAll(): void {
		if (this.#closed) return;
		for (const vm of this.#vms) if (!vm.watched) this.#begin(vm);
		this.#followSpare();
	}

	#followSpare(): void {
		try {
			this.#spareWatch.follow(this.#spare, this.#clock.nowMs());
		} catch (error) {
			this.#options.log.warn("the memory of VMs that wait for a pod can't be watched", { reason: explain(error) });
		}
	}

	#begin(vm: VmMemory): void {
		const { pid, startTime, log } = vm.options;
		try {
			vm.watch = this.#source.watchProcess(pid, startTime);
			this.#places.join(vm);
			vm.watched = true;
		} catch (error) {
			// The next look tries again; the log has it once.
			this.#end(vm);
			if (!this.#unwatchable.has(vm)) log.warn("the VM's memory can't be watched yet", { reason: explain(error) });
			this.#unwatchable.add(vm);
		}
	}

	#end(vm: VmMemory): void {
		if (vm.watch !== undefined) this.#source.unwatch(vm.watch);
		vm.watch = undefined;
		this.#places.leave(vm);
	}

	async #look(): Promise<void> {
		this.#beginAll();
		// CPU time costs more than pages: it is asked for when it may be wanted.
		const sample = await this.#source.sample({ time: this.#quick });
		const nowMs = this.#clock.nowMs();
		const vms = [...this.#vms];
		for (const vm of vms) judge(vm, sample, nowMs);
		const { found, of } = this.#places.assess(sample, this.#heldBytes(sample, vms), nowMs);
		const wanting = this.#spareFirst(found, sample, nowMs);
		const mayGive = (vm: VmMemory): boolean => of(vm).some((place) => (wanting[place]?.wantedBytes ?? 0) > 0);
		const views = await this.#ask(chooseGuests(vms, mayGive), of, nowMs);
		const seen = views.map(({ view }) => view);
		for (const [index, bytes] of decide(seen, wanting)) void this.#apply(views[index]?.vm, bytes);
		await this.#mark(sample, nowMs);
	}

	/** Processor time counts from here to the next look: to be asked is work as well, and in emulation more than an idle guest does. */
	async #mark(before: Sample, beforeMs: number): Promise<void> {
		const able = [...this.#vms].filter((vm) => vm.exempt === undefined);
		const again = this.#quick && able.length > 0;
		const sample = again ? await this.#source.sample({ time: true }) : before;
		const atMs = again ? this.#clock.nowMs() : beforeMs;
		for (const vm of able) {
			const cpuMs = cpuOf(vm, sample);
			vm.cpu = cpuMs === undefined ? undefined : { atMs, cpuMs };
		}
	}

	#heldBytes(sample: Sample, vms: readonly VmMemory[]): number {
		const pods = vms.reduce((sum, { watch }) => sum + (watch === undefined ? 0 : (sample.process(watch)?.residentBytes ?? 0)), 0);
		return pods + this.#spareWatch.residentBytes(sample);
	}

	/**
	 * VMs that wait for pods go first: half of them, each time that the node or the budget is short. While some wait, pods give nothing to these two; what those
	 * hold that are being ended counts as there.
	 * @returns what is wanted of pods
	 */
	#spareFirst(places: readonly Assessment[], sample: Sample, nowMs: number): Assessment[] {
		const spare = this.#spare;
		const own = [places[NODE], places[BUDGET]];
		const wanted = Math.max(...own.map((place) => place?.wantedBytes ?? 0));
		spare?.allow(Math.min(...own.map((place) => place?.spareBytes ?? 0)));
		if (wanted === 0 || spare === undefined) return [...places];
		// Some may have begun to end since they were looked at.
		this.#followSpare();
		const coming = this.#spareWatch.comingBytes(sample, nowMs);
		const waited = spare.waiting.length;
		// With none that is ready as well: none is made meanwhile, and one that is being made is given up.
		if (spare.kept && wanted > coming) {
			const vms = spare.shrink(Math.ceil(waited / 2));
			if (vms > 0) this.#options.log.info("VMs that waited for a pod are given up", { vms });
		}
		return places.map((place, index) =>
			index === NODE || index === BUDGET ? { ...place, wantedBytes: waited > 0 ? 0 : Math.max(0, place.wantedBytes - coming) } : place,
		);
	}

	/** Asks guests. Who needs memory gets it as soon as that is known, also when the others have been decided on by then. */
	async #ask(
		vms: readonly VmMemory[],
		of: (vm: VmMemory) => number[],
		nowMs: number,
	): Promise<{ readonly vm: VmMemory; readonly view: VmView }[]> {
		const views: { readonly vm: VmMemory; readonly view: VmView }[] = [];
		const answered = (vm: VmMemory, told: Omit<VmView, "places">): void => {
			const view = { ...told, places: of(vm) };
			const needed = afterNeed(view);
			if (needed === undefined) views.push({ vm, view });
			else void this.#apply(vm, needed);
		};
		const look = { nextTurn: () => this.#turns++, nowMs };
		const [steady, doubtful] = [vms.filter((vm) => vm.answers), vms.filter((vm) => !vm.answers)];
		void askGuests(doubtful, look, answered);
		await this.#atMost(ANSWER_MS, askGuests(steady, look, answered));
		return [...views];
	}

	async #atMost(ms: number, work: Promise<void>): Promise<void> {
		let end: () => void = () => undefined;
		const over = new Promise<void>((resolve) => (end = this.#clock.after(ms, resolve)));
		await Promise.race([work, over]).finally(end);
	}

	/** Never rejects. */
	async #apply(vm: VmMemory | undefined, bytes: number): Promise<void> {
		if (vm === undefined || !this.#vms.has(vm)) return;
		const { balloonBytes: before } = vm;
		// It asked for memory, by having too little: it keeps what it gets.
		if (bytes < before && this.#places.isShortFor(vm)) vm.hold();
		try {
			await vm.setBalloon(bytes);
			vm.options.log.debug("balloon", { fromMib: before / BYTES_PER_MIB, toMib: bytes / BYTES_PER_MIB });
		} catch (error) {
			vm.failed();
			if (this.#vms.has(vm)) vm.options.log.warn("the VM's balloon can't be changed", { reason: explain(error) });
		}
	}
}

const cpuOf = ({ watch }: VmMemory, sample: Sample): number | undefined => (watch === undefined ? undefined : sample.process(watch)?.cpuMs);

/** A VM is idle when it has used little CPU time since it was marked. */
function judge(vm: VmMemory, sample: Sample, nowMs: number): void {
	const cpuMs = cpuOf(vm, sample);
	const { cpu: before } = vm;
	vm.idle = before !== undefined && cpuMs !== undefined && cpuMs - before.cpuMs < IDLE_PART * (nowMs - before.atMs);
}
