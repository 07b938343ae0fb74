/** A clock that stands still until a test moves it. */
import type { Clock } from "../../shim/base/clock.ts";

type Alarm = { readonly atMs: number; readonly callback: () => void };

export class ManualClock implements Clock {
	#nowMs = 1_000_000;
	readonly #alarms = new Set<Alarm>();

	nowMs(): number {
		return this.#nowMs;
	}

	after(ms: number, callback: () => void): () => void {
		const alarm = { atMs: this.#nowMs + Math.max(0, ms), callback };
		this.#alarms.add(alarm);
		return () => void this.#alarms.delete(alarm);
	}

	/** Milliseconds until the next alarm; undefined when there is none. */
	get nextMs(): number | undefined {
		const times = [...this.#alarms].map(({ atMs }) => atMs);
		return times.length === 0 ? undefined : Math.min(...times) - this.#nowMs;
	}

	/** Lets so much time pass; what comes of each alarm that is due comes before the next one. */
	async pass(ms: number): Promise<void> {
		const endMs = this.#nowMs + ms;
		await settled();
		for (;;) {
			const [next] = [...this.#alarms].filter(({ atMs }) => atMs <= endMs).sort((one, other) => one.atMs - other.atMs);
			if (next === undefined) break;
			this.#alarms.delete(next);
			this.#nowMs = Math.max(this.#nowMs, next.atMs);
			next.callback();
			await settled();
		}
		this.#nowMs = endMs;
	}
}

/** Settles when all that waits for nothing has run. */
export function settled(): Promise<void> {
	return new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
}
