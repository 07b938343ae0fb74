/** When the next VM may be booted ahead: after those who start, after a while when it failed, and not while the node's memory is short. */

import type { Clock } from "../../base/clock.ts";

/** When the pool does what, in milliseconds. */
export interface PoolTimes {
	/** So long nothing must have been started before a VM is booted ahead. */
	readonly quiet: number;
	/** One that is missing for so long is booted although others start. */
	readonly patience: number;
	/** After a failure, doubled with each further one up to the longest. */
	readonly retry: number;
	readonly longestRetry: number;
	/** A VM that lived so long has not failed because of how it was made. */
	readonly stable: number;
	/** So long nothing is booted after the pool was shrunk; doubled each time that it was filled again too soon, up to the longest. */
	readonly hold: number;
	readonly longestHold: number;
}

const TIMES: PoolTimes = {
	quiet: 1_000,
	patience: 15_000,
	retry: 5_000,
	longestRetry: 300_000,
	stable: 60_000,
	hold: 60_000,
	longestHold: 3_600_000,
};

/** The pace of one pool. */
export class Pacing {
	readonly #times: PoolTimes;
	readonly #clock: Clock;
	/** Starts that are under way, and when the last one ended. */
	#starts = 0;
	#calmSinceMs: number;
	/** In a row, and when the last one was: those of long ago say nothing. */
	#failures = 0;
	#failedAtMs = Number.NEGATIVE_INFINITY;
	#notBeforeMs = Number.NEGATIVE_INFINITY;
	/** How long the last hold was, its end, and the first boot after it. */
	#holdMs: number;
	#heldUntilMs = Number.NEGATIVE_INFINITY;
	#refilledAtMs: number | undefined;

	constructor(clock: Clock, times: Partial<PoolTimes> = {}) {
		this.#clock = clock;
		this.#times = { ...TIMES, ...times };
		this.#calmSinceMs = clock.nowMs();
		this.#holdMs = this.#times.hold;
	}

	/** Something is being started. @returns to be called when that is over */
	began(): () => void {
		this.#starts++;
		return () => {
			this.#starts--;
			this.#calmSinceMs = this.#clock.nowMs();
		};
	}

	/** A VM is being booted ahead. */
	booting(): void {
		if (this.#heldUntilMs !== Number.NEGATIVE_INFINITY) this.#refilledAtMs ??= this.#clock.nowMs();
	}

	/** A boot has failed, or a VM ended by itself. @param livedMs how long that one lived */
	failed(livedMs = 0): void {
		const { retry, longestRetry, stable } = this.#times;
		const nowMs = this.#clock.nowMs();
		const first = livedMs > stable || nowMs - this.#failedAtMs > 2 * longestRetry;
		this.#failures = first ? 1 : this.#failures + 1;
		this.#failedAtMs = nowMs;
		this.#notBeforeMs = nowMs + Math.min(retry * 2 ** (this.#failures - 1), longestRetry);
	}

	/** Earlier failures say nothing any more. */
	forgive(): void {
		this.#failures = 0;
		this.#notBeforeMs = Number.NEGATIVE_INFINITY;
	}

	/** Nothing is booted for a while: longer when what was booted after the last time is what makes memory short again. */
	hold(): void {
		const { hold, longestHold } = this.#times;
		const nowMs = this.#clock.nowMs();
		if (nowMs >= this.#heldUntilMs) {
			const tooSoon = this.#refilledAtMs !== undefined && nowMs - this.#refilledAtMs < 2 * this.#holdMs;
			this.#holdMs = tooSoon ? Math.min(2 * this.#holdMs, longestHold) : hold;
		}
		this.#refilledAtMs = undefined;
		this.#heldUntilMs = nowMs + this.#holdMs;
	}

	/** When a VM may be booted that is missing since then. */
	nextAtMs(missingSinceMs: number): number {
		const { quiet, patience } = this.#times;
		const calmAtMs = this.#starts > 0 ? Number.POSITIVE_INFINITY : this.#calmSinceMs + quiet;
		return Math.max(Math.min(calmAtMs, missingSinceMs + patience), this.#notBeforeMs, this.#heldUntilMs);
	}
}
