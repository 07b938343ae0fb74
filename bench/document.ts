/** docs/performance.md, as a run makes it. */
import type { ScenarioResults } from "./results.ts";
import { OURS, RUNC } from "./runtimes.ts";
import { summarize } from "./statistics.ts";
import { columnsOf, hostsOf, hostText, number, originText, ratioText, stepRows, verdictCells, vmText, type Shown } from "./table.ts";
import type { Verdict } from "./targets.ts";

const cell = (text: string): string => text.replaceAll("|", "\\|");

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
	const line = (cells: readonly string[]): string => `| ${cells.map(cell).join(" | ")} |`;
	return [line(head), line(head.map((_, at) => (at === 0 ? "---" : "--:"))), ...rows.map(line)].join("\n");
}

function targets(verdicts: readonly Verdict[]): string {
	const rows = verdicts.map(verdictCells);
	const missed = verdicts.filter(({ outcome }) => outcome === "missed");
	const lines = missed.map(({ target, reason }) => `- **${target.name}**: ${reason}`);
	const why = missed.length === 0 ? "" : `\n\nWhat is missed, and why:\n\n${lines.join("\n")}`;
	const remarks = verdicts.filter(({ target, outcome }) => outcome !== "not measured" && target.remark !== undefined);
	const known = remarks.map(({ target }) => `\n\n**${target.name}**: ${target.remark}.`).join("");
	return `${table(["", "target", "that is here", "measured", "runc", ""], rows)}${why}${known}`;
}

/** @param apart whether scenarios were measured on several machines, so that each says which */
function scenario(results: ScenarioResults, apart: boolean): string {
	const columns = columnsOf(results);
	const rows = results.figures.map((figure) => [
		`${figure.name}${figure.unit === "" ? "" : ` (${figure.unit})`}`,
		...columns.map((column) => {
			const samples = figure.samples[column];
			if (samples === undefined) return "";
			const { median, p99, count } = summarize(samples);
			return count === 1 ? number(median) : `${number(median)} (${number(p99)})`;
		}),
		ratioText(figure),
	]);
	const where = apart ? `, ${hostText(results)}` : "";
	const steps =
		results.timeline.length === 0
			? ""
			: `\n\n${table(["step of a start (median)", "begins (ms)", "takes (ms)"], stepRows(results.timeline))}`;
	return `### ${results.name}

${results.what}; ${vmText(results)}. Measured by \`${results.command}\`: ${originText(results)}${where}.

${table(["", ...columns, "of runc"], rows)}${steps}`;
}

/** The document. Medians, with the 99th percentile behind them. */
export function renderDocument({ results, verdicts, absent }: Shown): string {
	const hosts = hostsOf(results);
	const failures = results.failures.map(({ scenario: name, reason }) => `- not measured: ${name}: ${reason}`);
	const missing = absent.length === 0 ? [] : [`Not measured: ${absent.join(", ")}.`];
	return `# Performance

<!-- Made by \`npm run bench -- --write-docs\`; reasons are in bench/missed.json. -->

Measured on ${hosts.length === 1 ? hosts[0] : "several machines, which stand with the tables"}. The command, the date and the commit stand with each table. In each of them ${RUNC.name} and \`${OURS.name}\` were measured by turns,
but two tables may be of different runs. Other work may have been going on: the load stands with each table, and only ratios within one can be compared. How each figure is taken is in [bench/README.md](../bench/README.md).

\`ch-qemu\`: real guests, in emulation (no KVM): what they take is the emulation's. \`null VM\`: a hypervisor and a guest agent that do nothing and answer at once (\`bench/null-vmm\`): what is left is the shim's own.

## Targets

Targets in milliseconds were set beside runc on a quiet machine of this kind. Where runc is measured too, its ratio counts: "that is here" is the limit for the machine as it was during this run.

${targets(verdicts)}

## Figures

Medians, with the 99th percentile in parentheses.

${[...results.scenarios.map((one) => scenario(one, hosts.length > 1)), ...failures, ...missing].join("\n\n")}
`;
}
