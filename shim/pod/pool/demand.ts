/** Which VMs a pool is to hold, from what pods asked for last. Pure. */

import type { Config } from "../../config/schema.ts";
import type { PodPlan } from "../plan.ts";

/** How long a pod counts as a sign that another one like it will come, beyond the number that is kept in any case. */
export const DEMAND_MS = 10 * 60_000;

interface Request {
	readonly plan: PodPlan;
	readonly atMs: number;
}

/** What pods of one configuration asked for. */
export class Demand {
	readonly #limits: Config["pool"];
	/** Newest first. */
	readonly #requests: Request[] = [];

	constructor(limits: Config["pool"]) {
		this.#limits = limits;
	}

	get #most(): number {
		return Math.max(this.#limits.size, this.#limits.max);
	}

	/** Notes that a pod asked for a VM like this. */
	ask(plan: PodPlan, nowMs: number): void {
		this.#requests.unshift({ plan, atMs: nowMs });
		this.#requests.length = Math.min(this.#requests.length, this.#most);
	}

	/**
	 * The VMs to hold: one for each of the latest pods, the most wanted first, filled up with usual ones to `pool.size`; as many as `pool.memory_mib` has
	 * room for.
	 */
	wanted(usual: PodPlan, nowMs: number): PodPlan[] {
		const recent = this.#requests.filter(({ atMs }, at) => at < this.#limits.size || nowMs - atMs < DEMAND_MS);
		const plans = recent.map(({ plan }) => plan);
		while (plans.length < this.#limits.size) plans.push(usual);
		let leftMib = this.#limits.memory_mib;
		return plans.filter(({ memoryMib }) => {
			if (memoryMib > leftMib) return false;
			leftMib -= memoryMib;
			return true;
		});
	}

	/** When `wanted` may have changed by time alone; undefined: never. */
	changesAtMs(nowMs: number): number | undefined {
		const times = this.#requests.slice(this.#limits.size).map(({ atMs }) => atMs + DEMAND_MS);
		const coming = times.filter((atMs) => atMs > nowMs);
		return coming.length === 0 ? undefined : Math.min(...coming);
	}
}
