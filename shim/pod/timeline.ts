/** The timeline of a pod: which named step ran when, for how long, and how it ended. The same names are in the log and in the bench. */

/** One finished or running step. Times are milliseconds since the pod's first call. */
export interface Span {
	readonly step: string;
	readonly startMs: number;
	durationMs: number | undefined;
	failed: boolean;
}

/** A span as the journal has it. One without a duration had not ended. */
export type EarlierSpan = Omit<Span, "durationMs"> & { readonly durationMs?: number | undefined };

/** More spans than this are not kept: a pod that lives long restarts containers for ever. */
const MAX_SPANS = 512;

/** Collects the spans of one pod. */
export class Timeline {
	/** The time of the pod's first call, in milliseconds since 1970: what a later snpd counts on from. */
	readonly beganAtMs: number;
	/** The same by this process's own clock, which is not set back. */
	readonly #origin: number;
	readonly #spans: Span[] = [];

	/** @param earlier what an earlier snpd wrote into the pod's journal */
	constructor(earlier?: { readonly beganAtMs?: number | undefined; readonly spans: readonly EarlierSpan[] }) {
		const nowMs = Date.now();
		this.beganAtMs = earlier?.beganAtMs ?? nowMs;
		this.#origin = performance.now() - (nowMs - this.beganAtMs);
		for (const span of earlier?.spans ?? []) this.#spans.push({ ...span, durationMs: span.durationMs });
	}

	/** The spans so far, in the order in which they became known. */
	get spans(): readonly Span[] {
		return this.#spans;
	}

	/** Records a step that others have run, and told of afterwards. @param endedAgoMs how long ago it ended */
	past(name: string, endedAgoMs: number, durationMs: number): void {
		const startMs = Math.max(0, performance.now() - this.#origin - endedAgoMs - durationMs);
		if (this.#spans.length < MAX_SPANS)
			this.#spans.push({ step: name, startMs: round(startMs), durationMs: round(durationMs), failed: false });
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
