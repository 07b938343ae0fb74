/**
 * The pool: VMs that are booted before a pod asks for one. It is kept as full as the configurations say without disturbing those who start: one VM at a time,
 * when nothing else is being started, never again at once after a failure. Nothing here knows how a VM is made.
 */

import { explain } from "../../base/errors.ts";
import type { Log } from "../../base/log.ts";
import type { Config } from "../../config/schema.ts";
import type { PodPlan } from "../plan.ts";
import type { MachineSize } from "../sizing.ts";
import { Demand } from "./demand.ts";
import { Pacing } from "./pacing.ts";
import type { PoolTimes } from "./pacing.ts";
import type { Shape } from "./shape.ts";

/** A VM that is ready for any pod that asks for its kind. */
export interface WarmVm {
	readonly name: string;
	/** See `Shape`. */
	readonly key: string;
	readonly size: MachineSize;
	/** The VMM's. */
	readonly pid: number;
	readonly readyAtMs: number;
	/** Settles when the VM is gone; never rejects. */
	readonly died: Promise<unknown>;
	/** Ends it and gives back all it has; never rejects. */
	end(): Promise<void>;
}

/** What the pool needs of its surroundings. */
export interface PoolOptions<V extends WarmVm> {
	readonly log: Log;
	/** The kind of VM that a plan asks for; rejects when what it is made of is not there. */
	shape(plan: PodPlan, config: Config): Promise<Shape>;
	/** The plan of a pod without wishes. */
	usual(config: Config): PodPlan;
	/** Boots a VM; whatever fails leaves nothing. */
	boot(shape: Shape, signal: AbortSignal): Promise<V>;
	/** Called with the configurations that want VMs, whenever they change. */
	watch?(configs: readonly Config[]): void;
	/** Called when there is no VM, and none is wanted; perhaps more than once. */
	emptied?(): void;
	readonly times?: Partial<PoolTimes>;
}

/** The pool in a few words, for snpctl. */
export interface PoolSummary {
	readonly vms: readonly {
		readonly name: string;
		readonly key: string;
		readonly state: "ready" | "booting";
		readonly vcpus: number;
		readonly memoryMib: number;
		readonly vmmPid: number;
		readonly ageMs: number;
	}[];
	/** How many it is to hold. */
	readonly wanted: number;
	/** Pods that got a VM of the pool, and those that could have had one and found none. */
	readonly hits: number;
	readonly misses: number;
	/** Why the last VM could not be booted, or ended by itself; empty when all is well. */
	readonly trouble: string;
}

interface Shelf {
	readonly config: Config;
	readonly demand: Demand;
}

/** VMs of all configurations that want some. */
export class Pool<V extends WarmVm> {
	readonly #options: PoolOptions<V>;
	readonly #pace: Pacing;
	/** By configuration file. */
	readonly #shelves = new Map<string, Shelf>();
	/** Oldest first. */
	#ready: V[] = [];
	#missing: readonly Shape[] = [];
	#filling: { readonly shape: Shape; readonly sinceMs: number; readonly abort: AbortController; readonly done: Promise<void> } | undefined;
	#ending = new Set<Promise<void>>();
	#wanted = 0;
	#missingSinceMs = 0;
	#trouble = "";
	#hits = 0;
	#misses = 0;
	#fillTimer: NodeJS.Timeout | undefined;
	#reviewTimer: NodeJS.Timeout | undefined;
	#reviewing: Promise<void> | undefined;
	#again = false;
	#closed = false;

	constructor(options: PoolOptions<V>) {
		this.#options = options;
		this.#pace = new Pacing(options.times);
	}

	/** VMs that wait for a pod. */
	get idle(): { readonly count: number; readonly memoryMib: number } {
		return { count: this.#ready.length, memoryMib: this.#ready.reduce((sum, { size }) => sum + size.memoryMib, 0) };
	}

	/** A configuration as it is now: VMs that it does not want any more are ended. */
	configure(file: string, config: Config): void {
		const known = this.#shelves.get(file);
		if (config.pool.size === 0 && config.pool.max === 0) {
			if (known === undefined) return;
			this.#shelves.delete(file);
		} else {
			if (known !== undefined && JSON.stringify(known.config) === JSON.stringify(config)) return;
			this.#shelves.set(file, { config, demand: new Demand(config.pool) });
		}
		this.#forgive();
		this.#options.watch?.([...this.#shelves.values()].map((shelf) => shelf.config));
		this.review();
	}

	/** Takes over VMs that an earlier snpd booted. */
	adopt(vms: readonly V[]): void {
		if (this.#closed) {
			for (const vm of vms) void this.#end(vm);
			return;
		}
		for (const vm of vms.toSorted((one, other) => one.readyAtMs - other.readyAtMs)) this.#add(vm);
		this.review();
	}

	/**
	 * A VM for a pod, if one of its kind is there: it is the caller's from now on.
	 * @param file the pod's configuration file
	 */
	async take(file: string, plan: PodPlan, config: Config): Promise<V | undefined> {
		this.configure(file, config);
		const shelf = this.#shelves.get(file);
		if (shelf === undefined) return undefined;
		const shape = await this.#options.shape(plan, config).catch(() => undefined);
		if (shape === undefined) return undefined;
		shelf.demand.ask(shape.plan, Date.now());
		const at = this.#ready.findIndex(({ key }) => key === shape.key);
		const [vm] = at < 0 ? [] : this.#ready.splice(at, 1);
		if (vm === undefined) this.#misses++;
		else this.#hits++;
		// The pod goes first.
		setImmediate(() => this.review());
		return vm;
	}

	/** Takes a VM back that a pod could not use after all. */
	giveBack(vm: V): void {
		this.#hits--;
		this.#misses++;
		if (this.#closed) {
			void this.#end(vm);
			return;
		}
		this.#ready.unshift(vm);
		// It may have ended while it was nobody's here.
		void vm.died.then((death) => this.#lost(vm, death));
		this.review();
	}

	/**
	 * A pod could not start in a VM that it took. Others are booted after a pause, longer each time, so that a node whose VMs are of no use for it starts its
	 * pods without them.
	 */
	failed(error: unknown): void {
		this.#hits--;
		this.#misses++;
		this.#fail("a pod could not start in a VM of the pool", error);
		this.#schedule();
	}

	/** Runs a start that no VM of the pool shall disturb. */
	async during<T>(start: () => Promise<T>): Promise<T> {
		const ended = this.#pace.began();
		this.#schedule();
		try {
			return await start();
		} finally {
			ended();
			this.#schedule();
		}
	}

	/**
	 * Ends VMs that wait for a pod, the oldest first, and boots no others for a while: the node's memory is needed.
	 * @returns how much memory they had, in MiB, once they have ended
	 */
	async shrink(count: number): Promise<number> {
		this.#pace.hold();
		clearTimeout(this.#fillTimer);
		this.#filling?.abort.abort();
		const vms = this.#ready.splice(0, Math.max(0, count));
		if (vms.length > 0) this.#options.log.info("the pool shrinks", { vms: vms.length });
		await Promise.all(vms.map((vm) => this.#end(vm)));
		this.review();
		return vms.reduce((sum, { size }) => sum + size.memoryMib, 0);
	}

	/** As `shrink`, of all of them. */
	drain(): Promise<number> {
		return this.shrink(this.#ready.length);
	}

	/** Ends all VMs, for good. */
	async close(): Promise<void> {
		this.#closed = true;
		clearTimeout(this.#fillTimer);
		clearTimeout(this.#reviewTimer);
		this.#filling?.abort.abort();
		const vms = this.#ready.splice(0);
		await Promise.all([...vms.map((vm) => this.#end(vm)), this.#filling?.done, this.#reviewing]);
		await Promise.all(this.#ending);
	}

	summary(): PoolSummary {
		const nowMs = Date.now();
		const ready = this.#ready.map(({ name, key, size, pid, readyAtMs }) => ({
			...{ name, key, state: "ready" as const, vcpus: size.vcpus, memoryMib: size.memoryMib },
			...{ vmmPid: pid, ageMs: nowMs - readyAtMs },
		}));
		const filling = this.#filling === undefined ? [] : [this.#filling];
		const booting = filling.map(({ shape: { key, plan }, sinceMs }) => ({
			...{ name: "", key, state: "booting" as const, vcpus: plan.vcpus, memoryMib: plan.memoryMib },
			...{ vmmPid: 0, ageMs: nowMs - sinceMs },
		}));
		const trouble = this.#trouble;
		return { vms: [...ready, ...booting], wanted: this.#wanted, hits: this.#hits, misses: this.#misses, trouble };
	}

	/** Compares what is there with what is wanted: ends what nobody wants, and has the rest booted in its time. */
	review(): void {
		this.#again = true;
		this.#reviewing ??= this.#reviewAll().finally(() => {
			this.#reviewing = undefined;
			// One that was asked for as the last one ended.
			if (this.#again && !this.#closed) this.review();
		});
	}

	async #reviewAll(): Promise<void> {
		while (this.#again && !this.#closed) {
			this.#again = false;
			const wanted = await this.#wantedShapes();
			if (!this.#closed) this.#compare(wanted);
		}
	}

	async #wantedShapes(): Promise<Shape[]> {
		const shapes: Shape[] = [];
		const nowMs = Date.now();
		for (const [file, { config, demand }] of this.#shelves) {
			try {
				const plans = demand.wanted(this.#options.usual(config), nowMs);
				shapes.push(...(await Promise.all(plans.map((plan) => this.#options.shape(plan, config)))));
			} catch (error) {
				this.#note(`no VM can be booted ahead for ${file}`, error);
			}
		}
		return shapes;
	}

	#compare(wanted: readonly Shape[]): void {
		const open = [...wanted];
		const claim = (key: string): boolean => {
			const at = open.findIndex((shape) => shape.key === key);
			if (at >= 0) open.splice(at, 1);
			return at >= 0;
		};
		const surplus = this.#ready.filter(({ key }) => !claim(key));
		this.#ready = this.#ready.filter((vm) => !surplus.includes(vm));
		for (const vm of surplus) void this.#end(vm);
		if (this.#filling !== undefined && !claim(this.#filling.shape.key)) this.#filling.abort.abort();
		if (this.#missing.length === 0) this.#missingSinceMs = Date.now();
		this.#missing = open;
		this.#wanted = wanted.length;
		this.#reviewLater();
		this.#schedule();
		this.#noticeEmpty();
	}

	/** What is wanted because of a burst of pods is not wanted for ever. */
	#reviewLater(): void {
		clearTimeout(this.#reviewTimer);
		const nowMs = Date.now();
		const times = [...this.#shelves.values()].map(({ demand }) => demand.changesAtMs(nowMs)).filter((atMs) => atMs !== undefined);
		if (times.length === 0) return;
		this.#reviewTimer = setTimeout(() => this.review(), Math.min(...times) - nowMs + 1);
		this.#reviewTimer.unref();
	}

	#schedule(): void {
		clearTimeout(this.#fillTimer);
		if (this.#closed || this.#filling !== undefined || this.#missing.length === 0) return;
		const waitMs = this.#pace.nextAtMs(this.#missingSinceMs) - Date.now();
		this.#fillTimer = setTimeout(() => this.#fill(), Math.max(0, waitMs));
		this.#fillTimer.unref();
	}

	#fill(): void {
		const [shape] = this.#missing;
		if (shape === undefined || this.#filling !== undefined || this.#closed) return;
		const abort = new AbortController();
		const done = this.#boot(shape, abort.signal).finally(() => {
			this.#filling = undefined;
			this.#missingSinceMs = Date.now();
			this.review();
		});
		this.#filling = { shape, sinceMs: Date.now(), abort, done };
	}

	async #boot(shape: Shape, signal: AbortSignal): Promise<void> {
		try {
			const vm = await this.#options.boot(shape, signal);
			this.#trouble = "";
			if (this.#closed || signal.aborted) await this.#end(vm);
			else this.#add(vm);
		} catch (error) {
			if (!signal.aborted) this.#fail("a VM could not be booted ahead", error);
		}
	}

	#add(vm: V): void {
		this.#ready.push(vm);
		void vm.died.then((death) => this.#lost(vm, death));
	}

	/** One that was taken, or is being ended, is nobody's here. */
	#lost(vm: V, death: unknown): void {
		if (!this.#ready.includes(vm)) return;
		this.#ready = this.#ready.filter((other) => other !== vm);
		this.#fail("a VM of the pool has ended", death, Date.now() - vm.readyAtMs);
		void this.#end(vm);
		this.review();
	}

	#end(vm: V): Promise<void> {
		const ended = vm.end().finally(() => {
			this.#ending.delete(ended);
			this.#noticeEmpty();
		});
		this.#ending.add(ended);
		return ended;
	}

	#noticeEmpty(): void {
		const count = this.#ready.length + this.#ending.size + this.#wanted;
		if (count === 0 && this.#filling === undefined) this.#options.emptied?.();
	}

	#fail(what: string, error: unknown, livedMs?: number): void {
		this.#pace.failed(livedMs);
		this.#note(what, error);
	}

	#note(what: string, error: unknown): void {
		this.#trouble = `${what}: ${explain(error)}`;
		this.#options.log.warn(what, { reason: explain(error) });
	}

	#forgive(): void {
		this.#pace.forgive();
		this.#trouble = "";
	}
}
