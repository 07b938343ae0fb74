/** The results as pictures: whole measures as bars, the steps of a cold start as a waterfall. */
import { MEASURES, type BenchResults, type RuntimeResult } from "./results.ts";
import type { Summary } from "./statistics.ts";
import { measureLabel } from "./table.ts";

const WIDTH = 960;
const LABEL_WIDTH = 220;
const VALUE_WIDTH = 180;
const BAR_HEIGHT = 16;
const ROW_HEIGHT = 24;
const TITLE_HEIGHT = 44;
const PLOT_WIDTH = WIDTH - LABEL_WIDTH - VALUE_WIDTH;
const OURS_COLOUR = "#2a6f97";
const OTHER_COLOUR = "#bc6c25";
const RANGE_COLOUR = "#33333388";

function escaped(text: string): string {
	return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}

function text(x: number, y: number, content: string, attributes = ""): string {
	return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${attributes}>${escaped(content)}</text>`;
}

/** A row of a picture: what it draws at a height. */
export type Row = (y: number) => string;

/** The colours of the shim and of the runtime beside it. */
export const COLOURS = [OURS_COLOUR, OTHER_COLOUR] as const;

/** One bar from its beginning to its median end, with a line from min to p95. */
export function bar(y: number, label: string, begin: number, summary: Summary, full: number, colour: string, unit = "ms"): string {
	const x = (value: number): number => LABEL_WIDTH + (value / full) * PLOT_WIDTH;
	const width = Math.max(1, x(begin + summary.median) - x(begin));
	const middle = y + BAR_HEIGHT / 2;
	const value = `${summary.median.toFixed(1)} ${unit} (${summary.min.toFixed(1)} to ${summary.p95.toFixed(1)})`;
	return [
		text(LABEL_WIDTH - 8, middle + 4, label, 'text-anchor="end"'),
		`<rect x="${x(begin).toFixed(1)}" y="${y}" width="${width.toFixed(1)}" height="${BAR_HEIGHT}" rx="2" fill="${colour}"/>`,
		`<line x1="${x(begin + summary.min).toFixed(1)}" x2="${x(begin + summary.p95).toFixed(1)}" y1="${middle}" y2="${middle}" stroke="${RANGE_COLOUR}" stroke-width="3"/>`,
		text(WIDTH - VALUE_WIDTH + 4, middle + 4, value, 'font-size="10"'),
	].join("\n");
}

function measureRows(ours: RuntimeResult, other: RuntimeResult, names: readonly [string, string]): Row[] {
	const fullMs = Math.max(...MEASURES.flatMap((measure) => [ours[measure].p95, other[measure].p95]));
	return MEASURES.flatMap((measure) => [
		(y: number) => bar(y, measureLabel(measure), 0, ours[measure], fullMs, OURS_COLOUR),
		(y: number) => bar(y, names[1], 0, other[measure], fullMs, OTHER_COLOUR),
	]);
}

function stepRows(ours: RuntimeResult): Row[] {
	const fullMs = Math.max(1, ...ours.steps.map((step) => step.startMs.median + step.durationMs.p95));
	return ours.steps.map((step) => (y: number) => bar(y, step.step, step.startMs.median, step.durationMs, fullMs, OURS_COLOUR));
}

/** An SVG 1.1 document with both plots; a bar is the median, the line across it goes from the least value to the 95th percentile. */
export function renderSvg(results: BenchResults, oursName: string, otherName: string): string {
	const ours = results.runtimes[oursName];
	const other = results.runtimes[otherName];
	if (ours === undefined || other === undefined) throw new Error(`no results of ${ours === undefined ? oursName : otherName}`);
	return picture([
		{
			title: `${oursName} beside ${otherName}: containerd ${results.containerd}, ${results.runs} runs`,
			rows: measureRows(ours, other, [oursName, otherName]),
		},
		{ title: `The steps of a cold start of ${oursName}`, rows: stepRows(ours) },
	]);
}

/** An SVG 1.1 document with these plots, one below the other. */
export function picture(plots: readonly { readonly title: string; readonly rows: readonly Row[] }[]): string {
	const parts: string[] = [];
	let y = 0;
	for (const { title, rows } of plots) {
		parts.push(text(16, y + 28, title, 'font-size="15" font-weight="bold"'));
		y += TITLE_HEIGHT;
		for (const row of rows) {
			parts.push(row(y));
			y += ROW_HEIGHT;
		}
	}
	const height = y + 16;
	return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}" font-family="sans-serif" font-size="12">
<rect width="${WIDTH}" height="${height}" fill="white"/>
${parts.join("\n")}
</svg>
`;
}
