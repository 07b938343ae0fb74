/** The results as text for a terminal. */
import { MEASURES, type BenchResults, type Measure } from "./results.ts";
import type { Summary } from "./statistics.ts";

const LABELS: Readonly<Record<Measure, string>> = {
	startCommandMs: "start (command by itself)",
	createMs: "create (task)",
	startMs: "start (task)",
	coldStartMs: "cold start (create + start)",
	removeMs: "kill + remove",
};

/** The name of a measure for readers. */
export function measureLabel(measure: Measure): string {
	return LABELS[measure];
}

/** A value with as many digits as it deserves. */
export function number(value: number): string {
	return value.toFixed(value < 100 ? 1 : 0);
}

/** The cells of a summary: min, median, p95. */
export function cells(summary: Summary): string[] {
	return [number(summary.min), number(summary.median), number(summary.p95)];
}

/** Rows as text, the first column to the left, the others to the right. */
export function align(rows: readonly (readonly string[])[]): string {
	const widths: number[] = [];
	for (const row of rows)
		row.forEach((cell, column) => {
			widths[column] = Math.max(widths[column] ?? 0, cell.length);
		});
	return rows
		.map((row) =>
			row
				.map((cell, column) => (column === 0 ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0)))
				.join("  ")
				.trimEnd(),
		)
		.join("\n");
}

/** Every table of the results; milliseconds throughout. */
export function renderTables(results: BenchResults, ours: string, other: string): string {
	const left = results.runtimes[ours];
	const right = results.runtimes[other];
	if (left === undefined || right === undefined) throw new Error(`no results of ${left === undefined ? ours : other}`);
	const head = `containerd ${results.containerd}, ${results.runs} runs, ${results.host.cpus} x ${results.host.cpu}, Linux ${results.host.kernel}, load ${results.host.load1.toFixed(1)}; milliseconds`;
	const whole = align([
		["", ours, "", "", other, "", "", "ratio"],
		["", "min", "median", "p95", "min", "median", "p95", "of medians"],
		...MEASURES.map((measure) => [
			measureLabel(measure),
			...cells(left[measure]),
			...cells(right[measure]),
			results.ratios[measure].toFixed(2),
		]),
		["first cold start", "", number(left.firstColdStartMs), "", "", number(right.firstColdStartMs), "", ""],
	]);
	const steps = align([
		["step", "begins (median)", "min", "median", "p95"],
		...left.steps.map((step) => [step.step, number(step.startMs.median), ...cells(step.durationMs)]),
	]);
	return `${head}\n\n${whole}\n\n${steps}\n`;
}
