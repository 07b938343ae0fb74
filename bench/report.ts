/** A run as one HTML file that needs no other. */
import type { Comparison } from "./baseline.ts";
import { escaped } from "./markup.ts";
import { curvePlot, distribution, waterfall } from "./plots.ts";
import type { ScenarioResults } from "./results.ts";
import { summarize } from "./statistics.ts";
import { columnsOf, hostText, hostsOf, number, originText, ratioText, stepRows, verdictCells, vmText, type Shown } from "./table.ts";
import type { Verdict } from "./targets.ts";

const STYLE = `
:root { color-scheme: light dark; --text: #1b1f24; --faint: #6a737d; --page: #ffffff; --line: #d8dee4; --c0: #1f6f9f; --c1: #b8641a; --c2: #3f7d3a; --c3: #8a4fa3; --good: #1a7f37; --bad: #c2341d; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --faint: #9aa4ae; --page: #14181d; --line: #333b44; --c0: #5fb3e6; --c1: #e8a05c; --c2: #7fc47a; --c3: #c79ae0; --good: #4ac26b; --bad: #ff7b66; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); } h3 { font-size: 1rem; font-weight: 600; margin-bottom: .2rem; }
p.faint, td.faint { color: var(--faint); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .7rem .2rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
td.reason { text-align: left; white-space: normal; color: var(--faint); }
.met, .better { color: var(--good); } .missed, .worse { color: var(--bad); }
svg { width: 100%; height: auto; font-size: 12px; } svg text { fill: var(--text); }
.grid { stroke: var(--line); } .median { stroke: currentColor; stroke-width: 2.5; }
.c0 { color: var(--c0); fill: var(--c0); } .c1 { color: var(--c1); fill: var(--c1); } .c2 { color: var(--c2); fill: var(--c2); } .c3 { color: var(--c3); fill: var(--c3); }
circle { fill: currentColor; fill-opacity: .55; } polyline { fill: none; stroke: currentColor; stroke-width: 2; }
`;

type Cell = string | { readonly text: string; readonly kind: string };

function row(cells: readonly Cell[], tag: "th" | "td"): string {
	const one = (cell: Cell): string =>
		typeof cell === "string" ? `<${tag}>${escaped(cell)}</${tag}>` : `<${tag} class="${cell.kind}">${escaped(cell.text)}</${tag}>`;
	return `<tr>${cells.map(one).join("")}</tr>`;
}

function table(head: readonly string[], rows: readonly (readonly Cell[])[]): string {
	const body = rows.map((cells) => row(cells, "td")).join("\n");
	return `<div class="wide"><table><thead>${row(head, "th")}</thead>\n<tbody>${body}</tbody></table></div>`;
}

function targets(verdicts: readonly Verdict[]): string {
	const rows = verdicts.map((verdict): Cell[] => {
		const [outcome = "", ...front] = verdictCells(verdict).toReversed();
		return [...front.toReversed(), { text: outcome, kind: verdict.outcome }, { text: verdict.reason, kind: "reason" }];
	});
	return `<h2>Targets</h2>\n${table(["", "target", "that is here", "measured", "runc", "", "why it is missed"], rows)}`;
}

function changed({ changes, remarks }: Comparison): string {
	const rows = changes.map(({ figure, ratio, interval, besideRunc, verdict }): Cell[] => [
		`${figure.id}: ${figure.name}`,
		ratio.toFixed(2),
		`${interval.low.toFixed(2)} to ${interval.high.toFixed(2)}`,
		besideRunc ? "beside runc" : "by itself",
		{ text: verdict, kind: verdict },
	]);
	const words = remarks.map((remark) => `<p class="faint">${escaped(remark)}</p>`);
	return `<h2>Since the baseline</h2>\n${table(["", "ratio", "95 %", "compared", ""], rows)}\n${words.join("\n")}`;
}

function scenario(results: ScenarioResults): string {
	const columns = columnsOf(results);
	const rows = results.figures.map((figure) => [
		`${figure.name}${figure.unit === "" ? "" : ` (${figure.unit})`}`,
		...columns.flatMap((column) => {
			const samples = figure.samples[column];
			if (samples === undefined) return ["", "", ""];
			const { median, p99, max } = summarize(samples);
			return [median, p99, max].map(number);
		}),
		ratioText(figure),
	]);
	const head = ["", ...columns.flatMap((column) => [`${column}: median`, "p99", "max"]), "of runc"];
	const plots = results.figures.map((figure) => `<h3>${escaped(figure.name)}</h3>\n${distribution(figure)}`);
	const timeline =
		results.timeline.length === 0
			? ""
			: `<h3>The steps of a start (medians)</h3>\n${waterfall(results.timeline)}
<details><summary>By name</summary>${table(["", "begins (ms)", "takes (ms)"], stepRows(results.timeline))}</details>`;
	const curves = results.curves.map((curve) => `<h3>${escaped(curve.name)}</h3>\n${curvePlot(curve)}`);
	return `<h2 id="${escaped(results.name)}">${escaped(results.name)}</h2>
<p>${escaped(results.what)}</p>
<p class="faint">${vmText(results)}; ${escaped(results.command)}: ${escaped(originText(results))}; ${escaped(hostText(results))}; ${results.seconds.toFixed(0)} s</p>
${table(head, rows)}
${timeline}
${curves.join("\n")}
<details><summary>Every sample</summary>
${plots.join("\n")}
</details>`;
}

/** The whole document. */
export function renderReport({ results, verdicts, comparison, absent }: Shown): string {
	const failures = results.failures.map(
		({ scenario: name, reason }) => `<p class="missed">not measured: ${escaped(name)}: ${escaped(reason)}</p>`,
	);
	const missing = absent.length === 0 ? "" : `<p class="faint">not measured: ${escaped(absent.join(", "))}</p>`;
	return `<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>containerd-shim-snp: bench</title><style>${STYLE}</style></head>
<body>
<h1>containerd-shim-snp beside ${escaped(results.runtimes.slice(1).join(", "))}</h1>
<p class="faint">${escaped(hostsOf(results).join("; "))}</p>
${failures.join("\n")}
${missing}
${targets(verdicts)}
${comparison === undefined ? "" : changed(comparison)}
${results.scenarios.map(scenario).join("\n")}
</body>
</html>
`;
}
