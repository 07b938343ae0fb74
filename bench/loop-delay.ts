/** How long an event loop lets others wait, from the times between turns of a timer of one millisecond. */

/** Milliseconds. */
export type LoopDelay = {
	/** Of a call that comes at any moment: each delay counts as long as it lasts. */
	readonly mean: number;
	/** In 99 of 100 moments the delay that is going on is at most this. */
	readonly p99: number;
	readonly max: number;
};

/** The timer's period: a turn that comes after it is not late. */
export const TIMER_MS = 1;
const SHARE = 0.99;

/** @param gaps milliseconds between the timer's turns. @throws Error when there are none */
export function loopDelay(gaps: readonly number[]): LoopDelay {
	const sorted = [...gaps].sort((a, b) => a - b);
	const total = sorted.reduce((sum, gap) => sum + gap, 0);
	const late = (gap: number): number => Math.max(0, gap - TIMER_MS);
	if (total === 0) throw new Error("the event loop has not turned");
	const mean = sorted.reduce((sum, gap) => sum + late(gap) * (gap / total), 0);
	let covered = 0;
	const p99 = sorted.find((gap) => (covered += gap) >= SHARE * total);
	return { mean, p99: late(p99 ?? 0), max: late(sorted.at(-1) ?? 0) };
}
