/** Time that never goes back, whatever becomes of the node's date, and timers by it. */

/** Longest timer that Node takes; a larger one would fire at once. */
export const MAX_TIMER_MS = 2 ** 31 - 1;

/** A clock whose zero means nothing. */
export interface Clock {
	/** Milliseconds; not whole ones. */
	nowMs(): number;
	/**
	 * Calls back after so many milliseconds, or earlier when they are more than a timer can take (24 days): who is called looks at the clock.
	 * The process does not wait for it.
	 * @returns how to give it up
	 */
	after(ms: number, callback: () => void): () => void;
}

/** The clock of this process (clock_gettime(2), CLOCK_MONOTONIC). */
export const MONOTONIC: Clock = {
	nowMs: () => performance.now(),
	after(ms, callback) {
		const timer = setTimeout(callback, Math.min(Math.max(0, Math.ceil(ms)), MAX_TIMER_MS)).unref();
		return () => clearTimeout(timer);
	},
};
