/** Plots as inline SVG. Colours and text come from the page's style sheet, so that they can be read on dark and on light. */
import { escaped } from "./markup.ts";
import type { Curve, Figure, Span } from "./results.ts";
import { summarize } from "./statistics.ts";
import { number, withUnit } from "./table.ts";

const WIDTH = 860;
const LEFT = 150;
const RIGHT = 130;
const ROW = 30;
const AXIS = 26;
const TICKS = 5;
const PLOT = WIDTH - LEFT - RIGHT;
const DOT = 2.6;
/** So that many samples of one value can be seen. */
const SPREAD = 9;
const STEP_ROW = 20;
const CURVE_HEIGHT = 260;
const MIDDLE = CURVE_HEIGHT - AXIS - 16;

function svg(height: number, label: string, parts: readonly string[]): string {
	return `<svg viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="${escaped(label)}">\n${parts.join("\n")}\n</svg>`;
}

function text(x: number, y: number, content: string, anchor: "start" | "middle" | "end" = "start"): string {
	return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}">${escaped(content)}</text>`;
}

/** A round number that is no less. */
function roundUp(value: number): number {
	if (value <= 0) return 1;
	const power = 10 ** Math.floor(Math.log10(value));
	const step = [1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((one) => one * power >= value) ?? 10;
	return step * power;
}

function axis(full: number, top: number, bottom: number, unit: string): string[] {
	return Array.from({ length: TICKS + 1 }, (_, at) => {
		const value = (full * at) / TICKS;
		const x = LEFT + (value / full) * PLOT;
		const line = `<line class="grid" x1="${x.toFixed(1)}" x2="${x.toFixed(1)}" y1="${top}" y2="${bottom}"/>`;
		return line + text(x, bottom + 16, at === TICKS ? withUnit(value, unit) : number(value), "middle");
	});
}

/** Every sample of a figure as a dot, a row for each column; the bar is the median. */
export function distribution(figure: Figure): string {
	const entries = Object.entries(figure.samples);
	const full = roundUp(Math.max(...entries.flatMap(([, samples]) => samples)));
	const bottom = entries.length * ROW + 4;
	const rows = entries.flatMap(([column, samples], row) => {
		const middle = row * ROW + ROW / 2 + 2;
		const x = (value: number): number => LEFT + (value / full) * PLOT;
		const { median, p99 } = summarize(samples);
		const dots = samples.map((value, at) => {
			const y = middle + (((at * 7) % (2 * SPREAD + 1)) - SPREAD) * (samples.length === 1 ? 0 : 1);
			return `<circle cx="${x(value).toFixed(1)}" cy="${y.toFixed(1)}" r="${DOT}"/>`;
		});
		const mark = `<line class="median" x1="${x(median).toFixed(1)}" x2="${x(median).toFixed(1)}" y1="${middle - 12}" y2="${middle + 12}"/>`;
		const words = samples.length === 1 ? number(median) : `${number(median)}, p99 ${number(p99)}`;
		return [
			text(LEFT - 10, middle + 4, column, "end"),
			`<g class="c${row}">${dots.join("")}${mark}</g>`,
			text(WIDTH - RIGHT + 12, middle + 4, words),
		];
	});
	return svg(bottom + AXIS, figure.name, [...axis(full, 0, bottom, figure.unit), ...rows]);
}

/** The steps of a start, each from its beginning to its end. */
export function waterfall(steps: readonly Span[]): string {
	const full = roundUp(Math.max(...steps.map(({ startMs, durationMs }) => startMs + durationMs)));
	const bottom = steps.length * STEP_ROW + 4;
	const x = (ms: number): number => LEFT + (ms / full) * PLOT;
	const rows = steps.flatMap(({ step, startMs, durationMs }, row) => {
		const y = row * STEP_ROW + 3;
		const width = Math.max(1.5, x(startMs + durationMs) - x(startMs));
		return [
			text(LEFT - 10, y + 12, step, "end"),
			`<rect class="c0" x="${x(startMs).toFixed(1)}" y="${y}" width="${width.toFixed(1)}" height="${STEP_ROW - 6}" rx="2"/>`,
			text(WIDTH - RIGHT + 12, y + 12, `${number(durationMs)} ms`),
		];
	});
	return svg(bottom + AXIS, "the steps of a start", [...axis(full, 0, bottom, "ms"), ...rows]);
}

/** 1, 2 and 5 of each power of ten, from the last that is at most the least value to the first that is at least the largest. */
function factorTicks(least: number, largest: number): number[] {
	const ticks: number[] = [];
	for (let power = 10 ** Math.floor(Math.log10(least)); power <= largest * 10; power *= 10)
		for (const step of [1, 2, 5]) ticks.push(step * power);
	const below = ticks.findLast((tick) => tick <= least) ?? least;
	const above = ticks.find((tick) => tick >= largest) ?? largest;
	return ticks.filter((tick) => tick >= below && tick <= above);
}

/** Lines on axes whose steps are factors: what halves is as far below everywhere. Values of zero and less are left out. */
export function curvePlot(curve: Curve): string {
	const entries = Object.entries(curve.points);
	const all = entries.flatMap(([, points]) => points).filter(([, y]) => y > 0);
	const xs = [...new Set(all.map(([x]) => x))].sort((a, b) => a - b);
	const [first = 1, last = 1] = [xs[0], xs.at(-1)];
	const values = all.map(([, y]) => y);
	const ticks = factorTicks(Math.min(...values), Math.max(...values));
	const [low = 1, high = 1] = [ticks[0], ticks.at(-1)];
	const span = Math.log(last / first) || 1;
	const x = (value: number): number => LEFT + (Math.log(value / first) / span) * PLOT;
	const height = Math.log(high / low) || 1;
	const y = (value: number): number => 12 + MIDDLE * (1 - Math.log(Math.max(value, low) / low) / height);
	const grid = ticks.map((value) => {
		const line = `<line class="grid" x1="${LEFT}" x2="${LEFT + PLOT}" y1="${y(value).toFixed(1)}" y2="${y(value).toFixed(1)}"/>`;
		return line + text(LEFT - 10, y(value) + 4, withUnit(value, curve.unit), "end");
	});
	const below = xs.map((value) => text(x(value), CURVE_HEIGHT - AXIS + 18, String(value), "middle"));
	const lines = entries.map(([name, points], row) => {
		const path = points.map(([px, py]) => `${x(px).toFixed(1)},${y(py).toFixed(1)}`).join(" ");
		const dots = points.map(([px, py]) => `<circle cx="${x(px).toFixed(1)}" cy="${y(py).toFixed(1)}" r="3.5"/>`);
		const [endX = last, endY = 0] = points.at(-1) ?? [];
		return `<g class="c${row}"><polyline points="${path}"/>${dots.join("")}</g>${text(x(endX) + 10, y(endY) + 4 - row * 2, `${name} ${number(endY)}`)}`;
	});
	return svg(CURVE_HEIGHT + 8, curve.name, [...grid, ...below, text(LEFT + PLOT / 2, CURVE_HEIGHT + 4, curve.over, "middle"), ...lines]);
}
