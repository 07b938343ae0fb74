/**
 * The pool: VMs that are booted before a pod asks for one. It is kept as full as the configurations say without disturbing those who start: one VM at a time,
 * when nothing else is being started, never again at once after a failure. Nothing here knows how a VM is made.
 */

import { MONOTONIC } from "../../base/clock.ts";
import type { Clock } from "../../base/clock.ts";
import { explain } from "../../base/errors.ts";
import type { Log } from "../../base/log.ts";
import { Repeat } from "../../base/repeat.ts";
import type { Config } from "../../config/schema.ts";
import type { SpareVm } from "../../memory/ports.ts";
import type { PodPlan } from "../plan.ts";
import type { MachineSize } from "../sizing.ts";
import { Pacing } from "./pacing.ts";
import type { PoolTimes } from "./pacing.ts";
import type { Shape } from "./shape.ts";
import { Shelves } from "./shelves.ts";
import type { ShapeMaker, Wishes } from "./shelves.ts";

/** A VM that is ready for any pod that asks for its kind. */
export interface WarmVm extends SpareVm {
	readonly name: string;
	/** See `Shape`. */
	readonly key: string;
	readonly size: MachineSize;
	/** By the node's date. */
	readonly readyAtMs: number;
	/** Settles when the VM is gone; never rejects. */
	readonly died: Promise<unknown>;
	/** Ends it and gives back all it has; never rejects. */
	end(): Promise<void>;
}

/** What the pool needs of its surroundings. */
export interface PoolOptions<V extends WarmVm> extends ShapeMaker {
	readonly log: Log;
	/** Boots a VM; whatever fails leaves nothing. */
	boot(shape: Shape, signal: AbortSignal): Promise<V>;
	/** Called with the configurations that want VMs, whenever they change. */
	watch?(configs: readonly Config[]): void;
	/** Called when there is no VM, and none is wanted; perhaps more than once. */
	emptied?(): void;
	readonly times?: Partial<PoolTimes>;
	/** This process's own unless given. */
	readonly clock?: Clock;
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

const BYTES_PER_MIB = 1024 * 1024;

/** VMs of all configurations that want some. */
export class Pool<V extends WarmVm> {
	readonly #options: PoolOptions<V>;
	readonly #clock: Clock;
	readonly #pace: Pacing;
	readonly #shelves: Shelves;
	/** Oldest first. */
	#ready: V[] = [];
	/** Since when each is here. */
	readonly #since = new WeakMap<V, number>();
	#missing: readonly Shape[] = [];
	#filling: { readonly shape: Shape; readonly sinceMs: number; readonly abort: AbortController; readonly done: Promise<void> } | undefined;
	readonly #ending = new Map<V, Promise<void>>();
	#wanted = 0;
	#missingSinceMs = 0;
	/** How much memory one more VM may have; undefined until it is told. */
	#allowedBytes: number | undefined;
	#trouble = "";
	#hits = 0;
	#misses = 0;
	#endFillTimer: () => void = () => undefined;
	#endReviewTimer: () => void = () => undefined;
	readonly #reviewing = new Repeat(() => this.#reviewAll());
	#closed = false;

	constructor(options: PoolOptions<V>) {
		this.#options = options;
		this.#clock = options.clock ?? MONOTONIC;
		this.#pace = new Pacing(this.#clock, options.times);
		this.#shelves = new Shelves(options, this.#clock);
	}

	/** VMs that wait for a pod, the oldest first. */
	get waiting(): readonly V[] {
		return this.#ready;
	}

	/** VMs that are being ended. */
	get ending(): readonly V[] {
		return [...this.#ending.keys()];
	}

	/** A configuration as it is now: VMs that it does not want any more are ended. */
	configure(file: string, config: Config): void {
		if (!this.#shelves.configure(file, config)) return;
		this.#forgive();
		this.#options.watch?.(this.#shelves.configs);
		this.review();
	}

	/** Whether a configuration file wants VMs. */
	has(file: string): boolean {
		return this.#shelves.has(file);
	}

	/** Whether a configuration that wants VMs is what `configure` was told last. */
	isOf(file: string, config: Config): boolean {
		return this.#shelves.isOf(file, config);
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
	 * @param config the pod's: it may be older than what `configure` was told
	 */
	async take(file: string, plan: PodPlan, config: Config): Promise<V | undefined> {
		if (!this.#shelves.has(file)) return undefined;
		const shape = await this.#options.shape(plan, config).catch(() => undefined);
		if (shape === undefined) return undefined;
		this.#shelves.ask(file, shape.plan, config);
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
	 * Has VMs that wait for a pod ended, the oldest first, and boots no others for a while: the node's memory is needed. Until their ends they are `ending`.
	 * @returns how many
	 */
	shrink(count: number): number {
		this.#pace.hold();
		this.#endFillTimer();
		this.#filling?.abort.abort();
		const vms = this.#ready.splice(0, Math.max(0, count));
		if (vms.length > 0) this.#options.log.info("the pool shrinks", { vms: vms.length });
		for (const vm of vms) void this.#end(vm);
		this.review();
		return vms.length;
	}

	/** How much memory one more VM may have, in bytes, without making the node's memory short. Until it is told there is enough. */
	allow(bytes: number): void {
		const more = bytes > (this.#allowedBytes ?? Number.POSITIVE_INFINITY);
		this.#allowedBytes = bytes;
		if (more) this.#schedule();
	}

	/** Ends all VMs, for good. */
	async close(): Promise<void> {
		this.#closed = true;
		this.#endFillTimer();
		this.#endReviewTimer();
		this.#filling?.abort.abort();
		const vms = this.#ready.splice(0);
		await Promise.all([...vms.map((vm) => this.#end(vm)), this.#filling?.done, this.#reviewing.close()]);
		await Promise.all(this.#ending.values());
	}

	summary(): PoolSummary {
		const ready = this.#ready.map(({ name, key, size, pid, readyAtMs }) => ({
			...{ name, key, state: "ready" as const, vcpus: size.vcpus, memoryMib: size.memoryMib },
			...{ vmmPid: pid, ageMs: Math.max(0, Date.now() - readyAtMs) },
		}));
		const filling = this.#filling === undefined ? [] : [this.#filling];
		const booting = filling.map(({ shape: { key, plan }, sinceMs }) => ({
			...{ name: "", key, state: "booting" as const, vcpus: plan.vcpus, memoryMib: plan.memoryMib },
			...{ vmmPid: 0, ageMs: Math.round(this.#clock.nowMs() - sinceMs) },
		}));
		const trouble = this.#trouble === "" ? this.#noRoom() : this.#trouble;
		return { vms: [...ready, ...booting], wanted: this.#wanted, hits: this.#hits, misses: this.#misses, trouble };
	}

	/** Compares what is there with what is wanted: ends what nobody wants, and has the rest booted in its time. */
	review(): void {
		this.#reviewing.ask();
	}

	async #reviewAll(): Promise<void> {
		const wishes = await this.#shelves.wishes((file, error) => this.#note(`no VM can be booted ahead for ${file}`, error));
		if (!this.#closed) this.#compare(wishes);
	}

	#compare({ all, unknown }: Wishes): void {
		const open = [...all];
		const claim = (key: string): boolean => {
			const at = open.findIndex(({ shape }) => shape.key === key);
			if (at >= 0) open.splice(at, 1);
			return at >= 0;
		};
		const unwanted = this.#ready.filter(({ key }) => !claim(key));
		const surplus = unknown ? [] : unwanted;
		this.#ready = this.#ready.filter((vm) => !surplus.includes(vm));
		for (const vm of surplus) void this.#end(vm);
		if (this.#filling !== undefined && !claim(this.#filling.shape.key) && !unknown) this.#filling.abort.abort();
		if (this.#missing.length === 0) this.#missingSinceMs = this.#clock.nowMs();
		this.#missing = open.filter(({ old }) => !old).map(({ shape }) => shape);
		this.#wanted = all.length;
		this.#reviewLater();
		this.#schedule();
		this.#noticeEmpty();
	}

	/** What is wanted because of a burst of pods is not wanted for ever. */
	#reviewLater(): void {
		this.#endReviewTimer();
		const { changesAtMs } = this.#shelves;
		if (changesAtMs !== undefined) this.#endReviewTimer = this.#clock.after(changesAtMs - this.#clock.nowMs() + 1, () => this.review());
	}

	#schedule(): void {
		this.#endFillTimer();
		if (this.#closed || this.#filling !== undefined || this.#missing.length === 0) return;
		const waitMs = this.#pace.nextAtMs(this.#missingSinceMs) - this.#clock.nowMs();
		this.#endFillTimer = this.#clock.after(Math.max(0, waitMs), () => this.#fillIfDue());
	}

	/** A timer may come early, and what was waited for may have changed. */
	#fillIfDue(): void {
		if (this.#pace.nextAtMs(this.#missingSinceMs) > this.#clock.nowMs()) this.#schedule();
		else this.#fill();
	}

	/** Memory of those that wait, and of those that have not ended yet. */
	get #heldMib(): number {
		return [...this.#ready, ...this.#ending.keys()].reduce((sum, { size }) => sum + size.memoryMib, 0);
	}

	#hasRoom({ plan: { memoryMib }, config }: Shape): boolean {
		const allowed = memoryMib * BYTES_PER_MIB <= (this.#allowedBytes ?? Number.POSITIVE_INFINITY);
		return allowed && this.#heldMib + memoryMib <= config.pool.memory_mib;
	}

	/** Why nothing is booted although something is missing, if it is for want of memory. */
	#noRoom(): string {
		const [shape] = this.#missing;
		if (shape === undefined || this.#allowedBytes === undefined || this.#missing.some((one) => this.#hasRoom(one))) return "";
		const leftMib = Math.floor(this.#allowedBytes / BYTES_PER_MIB);
		if (shape.plan.memoryMib <= leftMib) return "";
		return `no VM of ${shape.plan.memoryMib} MiB is booted ahead: only ${leftMib} MiB are there above what must stay available (memory.reserve_mib, memory.budget_mib)`;
	}

	#fill(): void {
		const shape = this.#missing.find((one) => this.#hasRoom(one));
		if (shape === undefined || this.#filling !== undefined || this.#closed) return;
		this.#pace.booting();
		const abort = new AbortController();
		const done = this.#boot(shape, abort.signal).finally(() => {
			this.#filling = undefined;
			this.#missingSinceMs = this.#clock.nowMs();
			this.review();
		});
		this.#filling = { shape, sinceMs: this.#clock.nowMs(), abort, done };
	}

	async #boot(shape: Shape, signal: AbortSignal): Promise<void> {
		try {
			const vm = await this.#options.boot(shape, signal);
			this.#trouble = "";
			// Until the next word of it.
			if (this.#allowedBytes !== undefined) this.#allowedBytes -= vm.size.memoryMib * BYTES_PER_MIB;
			if (this.#closed || signal.aborted) await this.#end(vm);
			else this.#add(vm);
		} catch (error) {
			if (!signal.aborted) this.#fail("a VM could not be booted ahead", error);
		}
	}

	#add(vm: V): void {
		this.#ready.push(vm);
		this.#since.set(vm, this.#clock.nowMs());
		void vm.died.then((death) => this.#lost(vm, death));
	}

	/** One that was taken, or is being ended, is nobody's here. */
	#lost(vm: V, death: unknown): void {
		if (!this.#ready.includes(vm)) return;
		this.#ready = this.#ready.filter((other) => other !== vm);
		this.#fail("a VM of the pool has ended", death, this.#clock.nowMs() - (this.#since.get(vm) ?? 0));
		void this.#end(vm);
		this.review();
	}

	#end(vm: V): Promise<void> {
		const ended = vm.end().finally(() => {
			this.#ending.delete(vm);
			this.#noticeEmpty();
			// There may be room for another one.
			this.#schedule();
		});
		this.#ending.set(vm, ended);
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
