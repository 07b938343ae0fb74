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
	const step = [1, 2, 2.5, 5, 10].find((one) => one * power >= value) ?? 10;
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

/** Lines over a horizontal axis whose steps are factors. */
export function curvePlot(curve: Curve): string {
	const entries = Object.entries(curve.points);
	const all = entries.flatMap(([, points]) => points);
	const xs = [...new Set(all.map(([x]) => x))].sort((a, b) => a - b);
	const [first = 1, last = 1] = [xs[0], xs.at(-1)];
	const full = roundUp(Math.max(...all.map(([, y]) => y)));
	const span = Math.log(last / first) || 1;
	const x = (value: number): number => LEFT + (Math.log(value / first) / span) * PLOT;
	const y = (value: number): number => 12 + MIDDLE * (1 - value / full);
	const grid = Array.from({ length: TICKS + 1 }, (_, at) => {
		const value = (full * at) / TICKS;
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
	return svg(CURVE_HEIGHT, curve.name, [...grid, ...below, text(LEFT + PLOT / 2, CURVE_HEIGHT - 1, curve.over, "middle"), ...lines]);
}
