/** The steps of several starts as one. */
import type { Span } from "./results.ts";
import { median } from "./statistics.ts";

/** Each step at the medians of its beginning and its duration, in the order of the beginnings. A step that only some starts had counts as well. */
export function medianTimeline(timelines: readonly (readonly Span[])[]): Span[] {
	const spans = timelines.flat();
	const names = [...new Set(spans.map(({ step }) => step))];
	const all = names.map((step): Span => {
		const own = spans.filter((span) => span.step === step);
		return { step, startMs: median(own.map(({ startMs }) => startMs)), durationMs: median(own.map(({ durationMs }) => durationMs)) };
	});
	return all.sort((a, b) => a.startMs - b.startMs);
}
