/** What has become better or worse since an earlier run, beyond what chance explains. */
import { figuresOf, groupsOf, type Figure, type Results, type ScenarioResults } from "./results.ts";
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

/** All of it. */
export type Comparison = {
	readonly changes: readonly Change[];
	/** What must be known of them: figures that are gone, another machine, verdicts by chance. */
	readonly remarks: readonly string[];
};

/** Changes that nobody would notice are none. */
const NOTICED = 0.05;
/** With fewer samples (or bursts) chance can't be told. */
const FEW = 4;
/** By so much, up or down, values of few samples have to differ that don't overlap: chance alone rarely does that. */
const LARGE = 1.5;
/** The share of unchanged figures that a 95 % interval takes for changed. */
const FALSE_SHARE = 0.05;

type Series = { readonly groups: readonly (readonly number[])[]; readonly all: readonly number[] };

function seriesOf(figure: Figure, column: string): Series | undefined {
	const all = figure.samples[column];
	return all === undefined ? undefined : { groups: groupsOf(figure, column), all };
}

/** The ratio of two medians, or of two ratios to runc. */
const compute = ([now = 1, then = 1, runcNow = 1, runcThen = 1]: readonly number[]): number =>
	then === 0 || runcNow === 0 ? (now === 0 ? 1 : Infinity) : now / runcNow / (then / runcThen);

/** From the ratio of what is least now to what was most then, to the opposite. */
function extremes(series: readonly Series[]): Interval {
	const [now, then, runcNow, runcThen] = series.map(({ all }) => ({ least: Math.min(...all), most: Math.max(...all) }));
	return {
		low: compute([now?.least ?? 1, then?.most ?? 1, runcNow?.most ?? 1, runcThen?.least ?? 1]),
		high: compute([now?.most ?? 1, then?.least ?? 1, runcNow?.least ?? 1, runcThen?.most ?? 1]),
	};
}

function verdictOf(figure: Figure, ratio: number, series: readonly Series[], interval: Interval): Change["verdict"] {
	const better = figure.better === "less" ? ratio < 1 : ratio > 1;
	const size = Math.max(ratio, 1 / ratio);
	const fewest = Math.min(...series.map(({ groups }) => groups.length));
	if (fewest < FEW) {
		const { low, high } = extremes(series);
		const apart = fewest > 1 && (low > 1 || high < 1);
		return apart && size >= LARGE ? (better ? "better" : "worse") : "unsure";
	}
	const certain = interval.low > 1 || interval.high < 1;
	if (!certain || size < 1 + NOTICED) return "same";
	return better ? "better" : "worse";
}

function compareOne(figure: Figure, before: Figure): Change | undefined {
	const [now, then] = [seriesOf(figure, OURS.name), seriesOf(before, OURS.name)];
	if (now === undefined || then === undefined) return undefined;
	const [runcNow, runcThen] = [seriesOf(figure, RUNC.name), seriesOf(before, RUNC.name)];
	const besideRunc = runcNow !== undefined && runcThen !== undefined && median(runcNow.all) > 0 && median(runcThen.all) > 0;
	const series = besideRunc ? [now, then, runcNow, runcThen] : [now, then];
	const ratio = compute(series.map(({ all }) => median(all)));
	// Nothing has become something, as with failures.
	if (!Number.isFinite(ratio)) return { figure, ratio, interval: { low: ratio, high: ratio }, besideRunc, verdict: "worse" };
	const interval = medianInterval(
		series.map(({ groups }) => groups),
		compute,
	);
	return { figure, ratio, interval, besideRunc, verdict: verdictOf(figure, ratio, series, interval) };
}

/** The figures of an earlier scenario that it has no more. */
function vanished(now: ScenarioResults, before: ScenarioResults): string[] {
	const ids = new Set(now.figures.map(({ id }) => id));
	const gone = before.figures.filter(({ id }) => !ids.has(id)).map(({ id }) => id);
	return gone.length === 0 ? [] : [`${now.name}: the baseline has figures that were not measured now: ${gone.join(", ")}`];
}

/** What a scenario was measured with. */
function surroundings({ host, containerd, vm }: ScenarioResults): string {
	return `${host.cpus} x ${host.cpu}, ${host.memoryGib} GiB, Linux ${host.kernel}, containerd ${containerd}, VM ${vm}`;
}

function remarksOn(now: Results, before: Results): string[] {
	return before.scenarios.flatMap((earlier) => {
		const later = now.scenarios.find(({ name }) => name === earlier.name);
		if (later === undefined) return [`${earlier.name}: in the baseline, and not measured now`];
		const [here, there] = [surroundings(later), surroundings(earlier)];
		return [...vanished(later, earlier), ...(here === there ? [] : [`${later.name}: other surroundings: ${here}; the baseline: ${there}`])];
	});
}

/** Compares the figures that both runs have, and says what they have not both. */
export function compare(now: Results, before: Results): Comparison {
	const earlier = new Map(figuresOf(before).map((figure) => [figure.id, figure]));
	const changes = figuresOf(now).flatMap((figure) => {
		const known = earlier.get(figure.id);
		const change = known === undefined ? undefined : compareOne(figure, known);
		return change === undefined ? [] : [change];
	});
	const told = changes.filter(({ verdict }) => verdict !== "unsure").length;
	const byChance = `of ${told} figures with enough samples, up to ${(told * FALSE_SHARE).toFixed(1)} are expected to be called better or worse by chance alone`;
	return { changes, remarks: [...remarksOn(now, before), ...(told === 0 ? [] : [byChance])] };
}
