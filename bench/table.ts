/** The results as text for a terminal. */
import type { Change, Comparison } from "./baseline.ts";
import type { Figure, Origin, Results, ScenarioResults, Span } from "./results.ts";
import { OURS, RUNC } from "./runtimes.ts";
import { median, summarize } from "./statistics.ts";
import type { Verdict } from "./targets.ts";

/** What a run is shown as. */
export type Shown = {
	readonly results: Results;
	readonly verdicts: readonly Verdict[];
	/** With a baseline, if there is one. */
	readonly comparison?: Comparison;
	/** Known scenarios without a result. */
	readonly absent: readonly string[];
};

/** A value with as many digits as it deserves. */
export function number(value: number): string {
	const size = Math.abs(value);
	return value.toFixed(size === 0 || size >= 100 ? 0 : size < 10 ? 2 : 1);
}

/** A value with its unit. */
export function withUnit(value: number, unit: string): string {
	return unit === "" ? number(value) : `${number(value)} ${unit}`;
}

/** Rows as text, the first column to the left, the others to the right. */
export function align(rows: readonly (readonly string[])[]): string {
	const widths: number[] = [];
	for (const row of rows)
		row.forEach((cell, column) => {
			widths[column] = Math.max(widths[column] ?? 0, cell.length);
		});
	const line = (row: readonly string[]): string =>
		row.map((cell, column) => (column === 0 ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0))).join("  ");
	return rows.map((row) => line(row).trimEnd()).join("\n");
}

/** The median of ours over runc's; empty where one of them is missing. */
export function ratioText({ samples }: Figure): string {
	const [ours, runc] = [samples[OURS.name], samples[RUNC.name]];
	if (ours === undefined || runc === undefined || median(runc) === 0) return "";
	return (median(ours) / median(runc)).toFixed(2);
}

/** The steps of a start by name, as cells: name, when each began, how long it took. */
export function stepRows(steps: readonly Span[]): string[][] {
	return steps.map(({ step, startMs, durationMs }) => [step, number(startMs), number(durationMs)]);
}

/** The machine and what else a scenario was measured with. */
export function hostText({ host, containerd }: Pick<Origin, "host" | "containerd">): string {
	return `${host.cpus} x ${host.cpu}, ${host.memoryGib} GiB, Linux ${host.kernel}, containerd ${containerd}`;
}

/** The machines of all scenarios, each once. */
export function hostsOf({ scenarios }: Results): string[] {
	return [...new Set(scenarios.map(hostText))];
}

/** When and from what a scenario was measured, and under which load. */
export function originText({ date, commit, load1 }: Origin): string {
	return `${date.slice(0, 10)}, commit ${commit}, load ${load1.toFixed(1)} when it began`;
}

/** What was measured beside each other in a scenario. */
export function columnsOf({ figures }: Pick<ScenarioResults, "figures">): string[] {
	return [...new Set(figures.flatMap(({ samples }) => Object.keys(samples)))];
}

/** What the VMs of a scenario were. */
export function vmText({ vm }: Pick<ScenarioResults, "vm">): string {
	return { "ch-qemu": "ch-qemu", null: "null VM", none: "no VM" }[vm];
}

function scenarioTable(scenario: ScenarioResults): string {
	const columns = columnsOf(scenario);
	const head = ["", ...columns.flatMap((column) => [column, "", "", ""]), "of runc"];
	const second = ["", ...columns.flatMap(() => ["min", "median", "p99", "max"]), ""];
	const rows = scenario.figures.map((figure) => [
		`${figure.name}${figure.unit === "" ? "" : ` (${figure.unit})`}`,
		...columns.flatMap((column) => {
			const samples = figure.samples[column];
			if (samples === undefined) return ["", "", "", ""];
			const { min, median, p99, max } = summarize(samples);
			return [min, median, p99, max].map(number);
		}),
		ratioText(figure),
	]);
	const steps =
		scenario.timeline.length === 0
			? ""
			: `\n\n${align([["steps of a start (medians, ms)", "begins", "takes"], ...stepRows(scenario.timeline)])}`;
	return `${scenario.name} (${vmText(scenario)}): ${scenario.what}
${scenario.command}: ${originText(scenario)}\n${align([head, second, ...rows])}${steps}`;
}

/** How a target stands, as cells: name, limit, the limit on this machine, value, runc's, outcome. */
export function verdictCells({ target, value, runc, limit, outcome, besides }: Verdict): string[] {
	const { sense, unit, runcThen } = target;
	const goal = `${sense} ${withUnit(target.limit, unit)}${runcThen === undefined ? "" : ` (${(target.limit / runcThen).toFixed(2)} of runc)`}`;
	const shown = (one: number | undefined): string => (one === undefined ? "" : withUnit(one, unit));
	const here = limit === target.limit ? "" : withUnit(limit, unit);
	return [target.name, goal, here, shown(value), shown(runc), besides === "" ? outcome : `${outcome} (${besides})`];
}

function changeCells({ figure, ratio, interval, besideRunc, verdict }: Change): string[] {
	const range = `${interval.low.toFixed(2)} to ${interval.high.toFixed(2)}`;
	return [figure.id, ratio.toFixed(2), range, besideRunc ? "beside runc" : "by itself", verdict];
}

/** Every table of a run. */
export function renderTables({ results, verdicts, comparison, absent }: Shown): string {
	const parts = [
		...hostsOf(results),
		...results.scenarios.map(scenarioTable),
		align([["target", "", "that is here", "measured", "runc", ""], ...verdicts.map(verdictCells)]),
		...(comparison === undefined ? [] : [comparisonTable(comparison)]),
		...results.failures.map(({ scenario, reason }) => `NOT MEASURED: ${scenario}: ${reason}`),
		...(absent.length === 0 ? [] : [`not measured: ${absent.join(", ")}`]),
	];
	return `${parts.join("\n\n")}\n`;
}

function comparisonTable({ changes, remarks }: Comparison): string {
	const table = changes.length === 0 ? "" : align([["since the baseline", "ratio", "95 %", "", ""], ...changes.map(changeCells)]);
	return [table, ...remarks].join("\n").trimStart();
}
