/** What the bench says about series of measurements. */

/** In the unit of the samples. */
export type Summary = {
	readonly count: number;
	readonly min: number;
	readonly median: number;
	readonly p95: number;
	readonly p99: number;
	readonly max: number;
};

/** A range in which a value lies with 95 % certainty. */
export type Interval = { readonly low: number; readonly high: number };

const RESAMPLES = 1000;
const TAIL = 0.025;

/** The value below or at which the given share of the sorted samples lies (nearest rank). */
function atRank(sorted: readonly number[], share: number): number {
	const value = sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)];
	if (value === undefined) throw new Error("no samples");
	return value;
}

const ascending = (samples: readonly number[]): number[] => [...samples].sort((a, b) => a - b);

/** The middle sample; of an even number the mean of the middle two. @throws Error when there are none */
export function median(samples: readonly number[]): number {
	const sorted = ascending(samples);
	const upper = sorted[Math.floor(sorted.length / 2)];
	const lower = sorted[Math.ceil(sorted.length / 2) - 1];
	if (upper === undefined || lower === undefined) throw new Error("no samples");
	return (lower + upper) / 2;
}

/** Sums a series up. @throws Error when it is empty */
export function summarize(samples: readonly number[]): Summary {
	const sorted = ascending(samples);
	const rank = (share: number): number => atRank(sorted, share);
	return { count: sorted.length, min: rank(0), median: median(sorted), p95: rank(0.95), p99: rank(0.99), max: rank(1) };
}

/** Numbers from 0 up to 1 that are the same in every run (mulberry32). */
function generator(seed: number): () => number {
	let state = seed;
	return () => {
		state = (state + 0x6d2b79f5) | 0;
		let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
		mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
		return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
	};
}

/**
 * The range of a value that is computed from the medians of series, by drawing each series anew from its own groups of samples (bootstrap, percentile method).
 * Samples that were taken together are drawn together: they are not independent.
 * @param compute gets the medians in the order of the series
 * @throws Error when a series is empty
 */
export function medianInterval(
	series: readonly (readonly (readonly number[])[])[],
	compute: (medians: readonly number[]) => number,
	seed = 1,
): Interval {
	const random = generator(seed);
	const draw = (groups: readonly (readonly number[])[]): number[] =>
		groups.flatMap(() => groups[Math.floor(random() * groups.length)] ?? []);
	const values = Array.from({ length: RESAMPLES }, () => compute(series.map((groups) => median(draw(groups)))));
	const sorted = ascending(values);
	return { low: atRank(sorted, TAIL), high: atRank(sorted, 1 - TAIL) };
}
