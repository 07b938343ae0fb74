/** A container from nothing to running by containerd's tasks, each in a VM of its own. */
import { Ctr } from "../../test/support/ctr.ts";
import { measureColdStart, type ColdStart } from "../measure.ts";
import { Samples } from "../results.ts";
import { byTurns, type Bench, type Scenario } from "../scenario.ts";
import { medianTimeline } from "../timelines.ts";

async function run(bench: Bench) {
	const samples = new Samples();
	const timelines: ColdStart["steps"][] = [];
	const { containerd, image } = bench.bed;
	const clients = new Map(bench.runtimes.map(({ name, type }) => [name, new Ctr(containerd, type, image)]));
	await byTurns(bench, bench.runs(8, 3), async (runtime, counted) => {
		const ctr = clients.get(runtime.name);
		if (ctr === undefined) return;
		const { totalMs, createMs, startMs, removeMs, givenBackMs, steps } = await measureColdStart(bench, ctr, runtime);
		if (!counted) return;
		samples.add("cold.total", runtime.name, totalMs);
		samples.add("cold.create", runtime.name, createMs);
		samples.add("cold.start", runtime.name, startMs);
		samples.add("cold.remove", runtime.name, removeMs);
		samples.add("cold.given-back", runtime.name, givenBackMs);
		if (runtime.ours) timelines.push(steps);
	});
	return {
		figures: [
			samples.figure("cold.total", "Create and Start"),
			samples.figure("cold.create", "Create"),
			samples.figure("cold.start", "Start"),
			samples.figure("cold.remove", "Kill, Wait and Delete"),
			samples.figure("cold.given-back", "after that, until all is given back"),
		],
		timeline: medianTimeline(timelines),
	};
}

/** Cold starts. */
export const cold: Scenario = {
	name: "cold",
	what: "a container in a VM that is booted for it, by containerd's tasks",
	vm: "ch-qemu",
	run,
};
