/** What the bench says about a series of measurements. */

/** All in milliseconds. */
export type Summary = { readonly min: number; readonly median: number; readonly p95: number; readonly samples: readonly number[] };

/** The value below or at which the given share of the sorted samples lies (nearest rank). */
function atRank(sorted: readonly number[], share: number): number {
	const value = sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)];
	if (value === undefined) throw new Error("no samples");
	return value;
}

/** Sums a series up. The median of an even number of samples is the mean of the middle two. @throws Error when there are none. */
export function summarize(samples: readonly number[]): Summary {
	const sorted = [...samples].sort((a, b) => a - b);
	const upper = sorted[Math.floor(sorted.length / 2)];
	const lower = sorted[Math.ceil(sorted.length / 2) - 1];
	if (upper === undefined || lower === undefined) throw new Error("no samples");
	return { min: atRank(sorted, 0), median: (lower + upper) / 2, p95: atRank(sorted, 0.95), samples };
}
