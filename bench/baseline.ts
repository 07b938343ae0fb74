/** What has become better or worse since an earlier run, beyond what chance explains. */
import { figuresOf, type Figure, type Results } from "./results.ts";
import { OURS, RUNC } from "./runtimes.ts";
import { median, medianInterval, type Interval } from "./statistics.ts";

/** How one figure has changed. */
export type Change = {
	readonly figure: Figure;
	/** Now over then; with runc beside it both are runc's ratios, so that the machine's own changes cancel out. */
	readonly ratio: number;
	readonly interval: Interval;
	readonly besideRunc: boolean;
	readonly verdict: "better" | "worse" | "same" | "unsure";
};

/** Changes that nobody would notice are none. */
const NOTICED = 0.05;
/** With fewer samples chance can't be told: only a large change counts. */
const FEW = 4;
const LARGE = 0.15;

function verdictOf(figure: Figure, ratio: number, interval: Interval, fewest: number): Change["verdict"] {
	const better = figure.better === "less" ? ratio < 1 : ratio > 1;
	const size = Math.abs(ratio - 1);
	if (fewest < FEW) return size < LARGE ? "unsure" : better ? "better" : "worse";
	const certain = interval.low > 1 || interval.high < 1;
	if (!certain || size < NOTICED) return "same";
	return better ? "better" : "worse";
}

function compareOne(figure: Figure, before: Figure): Change | undefined {
	const [now, then] = [figure.samples[OURS.name], before.samples[OURS.name]];
	if (now === undefined || then === undefined) return undefined;
	const [runcNow, runcThen] = [figure.samples[RUNC.name], before.samples[RUNC.name]];
	const besideRunc = runcNow !== undefined && runcThen !== undefined && median(runcNow) > 0 && median(runcThen) > 0;
	const series = besideRunc ? [now, then, runcNow, runcThen] : [now, then];
	const compute = ([a = 1, b = 1, c = 1, d = 1]: readonly number[]): number =>
		b === 0 || c === 0 ? (a === 0 ? 1 : Infinity) : a / c / (b / d);
	const ratio = compute(series.map(median));
	if (!Number.isFinite(ratio)) return { figure, ratio, interval: { low: ratio, high: ratio }, besideRunc, verdict: "worse" };
	const interval = medianInterval(series, compute);
	const fewest = Math.min(...series.map((samples) => samples.length));
	return { figure, ratio, interval, besideRunc, verdict: verdictOf(figure, ratio, interval, fewest) };
}

/** Compares the figures that both runs have. */
export function compare(now: Results, before: Results): Change[] {
	const earlier = new Map(figuresOf(before).map((figure) => [figure.id, figure]));
	return figuresOf(now).flatMap((figure) => {
		const known = earlier.get(figure.id);
		const change = known === undefined ? undefined : compareOne(figure, known);
		return change === undefined ? [] : [change];
	});
}
