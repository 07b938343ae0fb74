/** A pod with one container through CRI, from nothing to running and back. */
import { measurePod, type PodRun } from "../pods.ts";
import { Samples, type Figure } from "../results.ts";
import { byTurns, type Bench, type Scenario } from "../scenario.ts";
import { medianTimeline } from "../timelines.ts";

const STEPS: readonly (readonly [key: Exclude<keyof PodRun, "steps">, name: string])[] = [
	["runPodMs", "RunPodSandbox"],
	["startContainerMs", "CreateContainer and StartContainer"],
	["stopPodMs", "StopPodSandbox, with the container running"],
	["removePodMs", "RemovePodSandbox"],
	["removalMs", "both: the removal"],
	["givenBackMs", "after that, until all is given back"],
];
const ids: Readonly<Record<Exclude<keyof PodRun, "steps">, string>> = {
	runPodMs: "run",
	startContainerMs: "container",
	stopPodMs: "stop",
	removePodMs: "remove",
	removalMs: "removal",
	givenBackMs: "given-back",
};

async function measure(bench: Bench, scenario: string, runs: number) {
	const samples = new Samples();
	const timelines: PodRun["steps"][] = [];
	await byTurns(bench, runs, async (runtime, counted) => {
		const run = await measurePod(bench, runtime);
		if (!counted) return;
		for (const [key] of STEPS) samples.add(`${scenario}.${ids[key]}`, runtime.name, run[key]);
		samples.add(`${scenario}.start`, runtime.name, run.runPodMs + run.startContainerMs);
		if (runtime.ours) timelines.push(run.steps);
	});
	const figures: Figure[] = STEPS.map(([key, name]) => samples.figure(`${scenario}.${ids[key]}`, name));
	return {
		figures: [samples.figure(`${scenario}.start`, "from nothing to a running container"), ...figures],
		timeline: medianTimeline(timelines),
	};
}

/** Pods with real guests. */
export const pod: Scenario = {
	name: "pod",
	what: "a pod of one container through CRI",
	vm: "ch-qemu",
	run: (bench) => measure(bench, "pod", bench.runs(8, 2)),
};

/** Pods whose guests do nothing. */
export const removal: Scenario = {
	name: "removal",
	what: "the same pod with a guest that does nothing: what CRI, CNI and the shim take of its start and its removal",
	vm: "null",
	run: (bench) => measure(bench, "removal", bench.runs(20, 5)),
};
