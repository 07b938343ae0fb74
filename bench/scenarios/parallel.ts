/** Pods that are started at once. */
import { startAtOnce } from "../burst.ts";
import { Samples } from "../results.ts";
import type { Bench, Scenario } from "../scenario.ts";

const COUNTS: readonly number[] = [1, 10, 50];
const WARM_UP = 3;

async function run(bench: Bench) {
	const samples = new Samples();
	for (const runtime of bench.runtimes) await startAtOnce(bench, runtime, WARM_UP);
	for (const count of COUNTS) {
		// Four bursts are the fewest that a later run can be compared with.
		const rounds = count === 1 ? bench.runs(10, 3) : bench.runs(4, 1);
		for (let round = 1; round <= rounds; round++) {
			for (const runtime of round % 2 === 1 ? bench.runtimes : bench.runtimes.toReversed()) {
				const { eachMs, allMs, failures } = await startAtOnce(bench, runtime, count);
				samples.addTogether(`parallel.${count}.each`, runtime.name, eachMs);
				samples.add(`parallel.${count}.all`, runtime.name, allMs);
				samples.add(`parallel.${count}.failed`, runtime.name, failures.length);
				bench.progress(`${count} at once, ${runtime.name}: ${allMs.toFixed(0)} ms, ${failures.length} failed ${failures[0] ?? ""}`);
			}
		}
	}
	return {
		figures: COUNTS.flatMap((count) => [
			samples.figure(`parallel.${count}.each`, `${count} at once: each until its container runs`),
			samples.figure(`parallel.${count}.all`, `${count} at once: until all run`),
			samples.figure(`parallel.${count}.failed`, `${count} at once: how many failed`, ""),
		]),
	};
}

/** Bursts. */
export const parallel: Scenario = { name: "parallel", what: "1, 10 and 50 pods started at once, through CRI", vm: "null", run };
