/** Which VMs all configurations want of the pool together. Nothing here boots or ends any. */

import type { Clock } from "../../base/clock.ts";
import type { Config } from "../../config/schema.ts";
import type { PodPlan } from "../plan.ts";
import { Demand } from "./demand.ts";
import type { Shape } from "./shape.ts";

/** What a configuration's wishes are made of. */
export interface ShapeMaker {
	/** The kind of VM that a plan asks for; rejects when what it is made of is not there. */
	shape(plan: PodPlan, config: Config): Promise<Shape>;
	/** The plan of a pod without wishes. */
	usual(config: Config): PodPlan;
}

/** One VM that is wanted. */
export interface Wish {
	readonly shape: Shape;
	/** What it is made of is not there now: such a VM is kept, and none is booted. */
	readonly old: boolean;
}

/** All that are wanted. */
export interface Wishes {
	readonly all: readonly Wish[];
	/** Configurations of which nothing is known yet: a VM that nobody wants may be theirs. */
	readonly unknown: boolean;
}

interface Shelf {
	readonly config: Config;
	/** The configuration as text, to compare. */
	readonly text: string;
	readonly demand: Demand;
	/** What was wanted when that was last known, of an earlier configuration of the file perhaps. */
	known: readonly Shape[] | undefined;
}

/** The wishes of configurations, by their files. */
export class Shelves {
	readonly #maker: ShapeMaker;
	readonly #clock: Clock;
	readonly #shelves = new Map<string, Shelf>();

	constructor(maker: ShapeMaker, clock: Clock) {
		this.#maker = maker;
		this.#clock = clock;
	}

	/** Configurations that want VMs. */
	get configs(): Config[] {
		return [...this.#shelves.values()].map(({ config }) => config);
	}

	/** A configuration as it is now. @returns whether that is anything new */
	configure(file: string, config: Config): boolean {
		if (config.pool.size === 0 && config.pool.max === 0) return this.#shelves.delete(file);
		const text = JSON.stringify(config);
		const before = this.#shelves.get(file);
		if (before?.text === text) return false;
		this.#shelves.set(file, { config, text, demand: new Demand(config.pool), known: before?.known });
		return true;
	}

	/** Whether a file wants any. */
	has(file: string): boolean {
		return this.#shelves.has(file);
	}

	/** Whether a file was like this when it was last read. */
	isOf(file: string, config: Config): boolean {
		return this.#shelves.get(file)?.text === JSON.stringify(config);
	}

	/** Notes what a pod asks for, unless it has a configuration that is not the file's any more. */
	ask(file: string, plan: PodPlan, config: Config): void {
		if (this.isOf(file, config)) this.#shelves.get(file)?.demand.ask(plan, this.#clock.nowMs());
	}

	/**
	 * What all of them want: the first wish of each before anybody's second. A configuration's `pool.memory_mib` is a bound of all VMs that wait on the node:
	 * beyond it nothing more is wanted for that configuration.
	 * @param failed called with what can't be known now, and why
	 */
	async wishes(failed: (file: string, error: unknown) => void): Promise<Wishes> {
		const nowMs = this.#clock.nowMs();
		const shelves = [...this.#shelves.entries()];
		const lists = await Promise.all(
			shelves.map(async ([file, shelf]): Promise<readonly Wish[]> => {
				const { config, demand } = shelf;
				try {
					const plans = demand.wanted(this.#maker.usual(config), nowMs);
					shelf.known = await Promise.all(plans.map((plan) => this.#maker.shape(plan, config)));
					return shelf.known.map((shape) => ({ shape, old: false }));
				} catch (error) {
					failed(file, error);
					return (shelf.known ?? []).map((shape) => ({ shape, old: true }));
				}
			}),
		);
		return { all: withinBounds(lists), unknown: shelves.some(([, { known }]) => known === undefined) };
	}

	/** When `wishes` may have changed by time alone; undefined: never. */
	get changesAtMs(): number | undefined {
		const nowMs = this.#clock.nowMs();
		const times = [...this.#shelves.values()].map(({ demand }) => demand.changesAtMs(nowMs)).filter((atMs) => atMs !== undefined);
		return times.length === 0 ? undefined : Math.min(...times);
	}
}

/** By turns, as far as each one's bound of all lets it. */
function withinBounds(lists: readonly (readonly Wish[])[]): Wish[] {
	const all: Wish[] = [];
	let heldMib = 0;
	const longest = Math.max(0, ...lists.map(({ length }) => length));
	for (let turn = 0; turn < longest; turn++) {
		for (const wish of lists.flatMap((list) => list[turn] ?? [])) {
			const { plan, config } = wish.shape;
			if (heldMib + plan.memoryMib > config.pool.memory_mib) continue;
			heldMib += plan.memoryMib;
			all.push(wish);
		}
	}
	return all;
}
