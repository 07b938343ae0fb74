/** What all scenarios of the bench have in common. */
import type { CriBed } from "../test/support/cri/bed.ts";
import type { Measured } from "./results.ts";
import type { Runtime } from "./runtimes.ts";
import type { Tools } from "./tools.ts";

/** What a scenario works with; the bed is its own. */
export type Bench = {
	readonly bed: CriBed;
	/** Those that are measured beside each other, ours first. */
	readonly runtimes: readonly Runtime[];
	readonly tools: Tools;
	readonly quick: boolean;
	/** How often something is measured: what the user asked for, else the scenario's own number. */
	readonly runs: (usual: number, quick: number) => number;
	readonly progress: (line: string) => void;
	/** Waits until nothing of the scenario's pods is left: what one runtime puts off is not to be done while another is measured. */
	readonly givenBack: () => Promise<void>;
	/** Where the flame graph of snpd goes, if one is wanted. */
	readonly profileFile: string | undefined;
};

/** One thing to measure. */
export type Scenario = {
	/** A short word for the command line. */
	readonly name: string;
	/** What is measured, in a line. */
	readonly what: string;
	/** `ch-qemu`: real guests; `null`: VMs that do nothing, so that only the shim's own part is left; `none`: no pods. */
	readonly vm: "ch-qemu" | "null" | "none";
	/** It starts no container. */
	readonly bare?: true;
	/** Further keys of the shim's configuration file, as TOML. */
	readonly config?: string;
	/** Makes what lasts as long as the bed: it is nothing that pods leave behind. */
	readonly prepare?: (bench: Bench) => Promise<void>;
	readonly run: (bench: Bench) => Promise<Measured>;
};

/** A result with the milliseconds that it took. */
export async function timed<T>(work: () => Promise<T>): Promise<[result: T, ms: number]> {
	const startedMs = performance.now();
	const result = await work();
	return [result, performance.now() - startedMs];
}

/**
 * Measures all runtimes by turns, so that a change of the machine's load meets each; every other turn goes backwards, so that none always follows the same one. The
 * first turn is not counted: images are built in it, and daemons started.
 */
export async function byTurns(bench: Bench, runs: number, work: (runtime: Runtime, counted: boolean) => Promise<void>): Promise<void> {
	for (const runtime of bench.runtimes) await work(runtime, false);
	for (let turn = 1; turn <= runs; turn++) {
		for (const runtime of turn % 2 === 1 ? bench.runtimes : bench.runtimes.toReversed()) await work(runtime, true);
		bench.progress(`${turn} of ${runs}`);
	}
}
