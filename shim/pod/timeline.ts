/** The timeline of a pod: which named step ran when, for how long, and how it ended. The same names are in the log and in the bench. */

/** One finished or running step. Times are milliseconds since the pod's first call. */
export interface Span {
	readonly step: string;
	readonly startMs: number;
	durationMs: number | undefined;
	failed: boolean;
}

/** More spans than this are not kept: a pod that lives long restarts containers for ever. */
const MAX_SPANS = 512;

/** Collects the spans of one pod. */
export class Timeline {
	readonly #origin: number;
	readonly #spans: Span[] = [];

	/** @param origin `performance.now()` of the pod's first call */
	constructor(origin: number = performance.now()) {
		this.#origin = origin;
	}

	/** The spans so far, in the order of their starts. */
	get spans(): readonly Span[] {
		return this.#spans;
	}

	/** Runs a step and records it, whatever its outcome. */
	async step<T>(name: string, work: () => Promise<T>): Promise<T> {
		const startMs = performance.now() - this.#origin;
		const span: Span = { step: name, startMs: round(startMs), durationMs: undefined, failed: false };
		if (this.#spans.length < MAX_SPANS) this.#spans.push(span);
		try {
			return await work();
		} catch (error) {
			span.failed = true;
			throw error;
		} finally {
			span.durationMs = round(performance.now() - this.#origin - startMs);
		}
	}
}

const round = (milliseconds: number): number => Math.round(milliseconds * 1000) / 1000;
