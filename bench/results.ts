/** The bench's results as plain data, and how they come from the measurements. */
import type { HostFacts } from "./host.ts";
import type { ColdStart } from "./measure.ts";
import { summarize, type Summary } from "./statistics.ts";

/** One step of the shim: when it began and how long it took, in milliseconds. */
export type StepResult = { readonly step: string; readonly startMs: Summary; readonly durationMs: Summary };

export type RuntimeResult = {
	/** The shim's `start` command by itself. */
	readonly startCommandMs: Summary;
	/** containerd's Tasks.Create. */
	readonly createMs: Summary;
	/** containerd's Tasks.Start. */
	readonly startMs: Summary;
	/** Create and Start together. */
	readonly coldStartMs: Summary;
	/** Kill, Wait and Delete. */
	readonly removeMs: Summary;
	/** Create and Start of the very first container, which is not among the samples: the image is built, the daemon started. */
	readonly firstColdStartMs: number;
	readonly steps: readonly StepResult[];
};

/** The rows that every runtime has. */
export const MEASURES = ["startCommandMs", "createMs", "startMs", "coldStartMs", "removeMs"] as const;
export type Measure = (typeof MEASURES)[number];

export type BenchResults = {
	readonly date: string;
	readonly host: HostFacts;
	readonly containerd: string;
	readonly runs: number;
	/** By the runtime's name. */
	readonly runtimes: Readonly<Record<string, RuntimeResult>>;
	/** Medians of the shim over medians of runc. */
	readonly ratios: Readonly<Record<Measure, number>>;
};

/** Sums up the samples of one runtime; steps keep the order of their median beginnings. */
export function runtimeResult(first: ColdStart, runs: readonly ColdStart[], startCommands: readonly number[]): RuntimeResult {
	const names = [...new Set(runs.flatMap((run) => run.steps.map(({ step }) => step)))];
	const steps = names.map((name): StepResult => {
		const seen = runs.flatMap((run) => run.steps.filter(({ step }) => step === name));
		return {
			step: name,
			startMs: summarize(seen.map(({ startMs }) => startMs)),
			durationMs: summarize(seen.map(({ durationMs }) => durationMs)),
		};
	});
	return {
		startCommandMs: summarize(startCommands),
		createMs: summarize(runs.map((run) => run.createMs)),
		startMs: summarize(runs.map((run) => run.startMs)),
		coldStartMs: summarize(runs.map((run) => run.totalMs)),
		removeMs: summarize(runs.map((run) => run.removeMs)),
		firstColdStartMs: first.totalMs,
		steps: steps.sort((a, b) => a.startMs.median - b.startMs.median),
	};
}

/** The ratio of the medians for each measure. */
export function ratios(ours: RuntimeResult, other: RuntimeResult): Record<Measure, number> {
	const ratio = (measure: Measure): number => ours[measure].median / other[measure].median;
	return {
		startCommandMs: ratio("startCommandMs"),
		createMs: ratio("createMs"),
		startMs: ratio("startMs"),
		coldStartMs: ratio("coldStartMs"),
		removeMs: ratio("removeMs"),
	};
}
