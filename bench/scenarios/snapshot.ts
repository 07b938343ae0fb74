/** A container in a VM that is a copy of a template, by turns with one whose VM is booted for it. */
import { join } from "node:path";
import { Ctr } from "../../test/support/ctr.ts";
import { distBinDir } from "../../test/support/paths.ts";
import { runOk } from "../../test/support/process.ts";
import { eventually } from "../../test/support/retry.ts";
import { measureColdStart, type ColdStart } from "../measure.ts";
import { Samples } from "../results.ts";
import { byTurns, type Bench, type Scenario } from "../scenario.ts";
import { medianTimeline } from "../timelines.ts";

const ON = "[snapshots]\nenabled = true\n";
const WAIT_MS = 120_000;
const SNPCTL_MS = 15_000;

/** Turns templates on or off, and waits until the one for pods without limits is there, or none. */
async function turn({ bed: { containerd } }: Bench, on: boolean): Promise<void> {
	await containerd.configure({ append: on ? ON : "" });
	const argv = containerd.inside(join(distBinDir, "snpctl"), "--state-dir", containerd.stateDir, "--json", "pool");
	await eventually("the template", WAIT_MS, async () => {
		const { snapshots } = JSON.parse((await runOk(argv, { timeoutMs: SNPCTL_MS })).stdout) as {
			readonly snapshots: { readonly templates: readonly unknown[]; readonly making: string };
		};
		return snapshots.making === "" && snapshots.templates.length === (on ? 1 : 0) ? true : undefined;
	});
}

const isCopy = ({ steps }: ColdStart): boolean =>
	steps.some(({ step }) => step === "reseed") && !steps.some(({ step }) => step === "vm-boot");

/** Real guests. */
export const snapshot: Scenario = {
	name: "snapshot",
	what: "a container in a VM that is a copy of a template, and by turns in one that is booted for it",
	vm: "ch-qemu",
	async run(bench) {
		const samples = new Samples();
		const timelines: ColdStart["steps"][] = [];
		const { containerd, image } = bench.bed;
		const clients = new Map(bench.runtimes.map(({ name, type }) => [name, new Ctr(containerd, type, image)]));
		await byTurns(bench, bench.runs(10, 4), async (runtime, counted) => {
			const ctr = clients.get(runtime.name);
			if (ctr === undefined || !runtime.ours) return;
			const cold = await measureColdStart(bench, ctr, runtime);
			await turn(bench, true);
			// The template is no pod's.
			const copy = await measureColdStart({ ...bench, givenBack: () => Promise.resolve() }, ctr, runtime);
			if (isCopy(cold) || !isCopy(copy)) throw new Error("a start was not what it was to be: a copy or booted");
			await turn(bench, false);
			await bench.givenBack();
			if (!counted) return;
			samples.add("snapshot.cold", runtime.name, cold.totalMs);
			samples.add("snapshot.total", runtime.name, copy.totalMs);
			samples.add("snapshot.create", runtime.name, copy.createMs);
			timelines.push(copy.steps);
		});
		return {
			figures: [
				samples.figure("snapshot.total", "Create and Start, in a copy of a template"),
				samples.figure("snapshot.create", "Create, in a copy of a template"),
				samples.figure("snapshot.cold", "Create and Start, booted"),
			],
			timeline: medianTimeline(timelines),
		};
	},
};
