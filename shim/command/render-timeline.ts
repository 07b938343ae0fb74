/** A timeline as text: one line a step, with a bar that shows when it ran. */

/** A step as snpd tells it; times in milliseconds. */
export interface RenderedSpan {
	readonly step: string;
	readonly startMs: number;
	/** Missing while the step runs. */
	readonly durationMs?: number | undefined;
	readonly failed: boolean;
}

const BAR_COLUMNS = 40;

/** Draws the steps in their order. */
export function renderTimeline(spans: readonly RenderedSpan[]): string {
	const end = Math.max(1, ...spans.map((span) => span.startMs + (span.durationMs ?? 0)));
	const width = Math.max(4, ...spans.map((span) => span.step.length));
	return spans
		.map((span) => {
			const before = Math.min(BAR_COLUMNS - 1, Math.floor((span.startMs / end) * BAR_COLUMNS));
			const length = Math.max(1, Math.round(((span.durationMs ?? 0) / end) * BAR_COLUMNS));
			const bar = `${" ".repeat(before)}${"█".repeat(Math.min(length, BAR_COLUMNS - before))}`.padEnd(BAR_COLUMNS);
			const duration = span.durationMs === undefined ? "running" : `${span.durationMs.toFixed(1)} ms`;
			return `${span.step.padEnd(width)}  ${span.startMs.toFixed(1).padStart(9)}  ${duration.padStart(11)}  ${bar}${span.failed ? "  failed" : ""}`.trimEnd();
		})
		.join("\n");
}
