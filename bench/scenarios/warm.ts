/** A container in a VM that was booted before, by turns with one whose VM is booted for it. */
import { join } from "node:path";
import { Ctr } from "../../test/support/ctr.ts";
import { distBinDir } from "../../test/support/paths.ts";
import { runOk } from "../../test/support/process.ts";
import { eventually } from "../../test/support/retry.ts";
import { measureColdStart, type ColdStart } from "../measure.ts";
import { Samples } from "../results.ts";
import { byTurns, type Bench, type Scenario } from "../scenario.ts";
import { medianTimeline } from "../timelines.ts";

const ON = "[pool]\nsize = 1\n";
const WAIT_MS = 120_000;
const SNPCTL_MS = 15_000;

/** Turns the pool on or off, and waits until it is so. */
async function turn({ bed: { containerd }, tools }: Bench, vm: Scenario["vm"], on: boolean): Promise<void> {
	await containerd.configure({ ...(vm === "null" ? { hypervisor: tools.nullVmm } : {}), append: on ? ON : "" });
	const argv = containerd.inside(join(distBinDir, "snpctl"), "--state-dir", containerd.stateDir, "--json", "pool");
	await eventually("the pool", WAIT_MS, async () => {
		const { vms } = JSON.parse((await runOk(argv, { timeoutMs: SNPCTL_MS })).stdout) as {
			readonly vms: readonly { readonly state: string }[];
		};
		const ready = vms.filter(({ state }) => state === "ready").length;
		return (on ? ready === 1 : vms.length === 0) ? true : undefined;
	});
}

const isWarm = ({ steps }: ColdStart): boolean => steps.some(({ step }) => step === "pool-take");

/** @param id what the figures' names begin with */
async function run(bench: Bench, vm: Scenario["vm"], id: string) {
	const samples = new Samples();
	const timelines: ColdStart["steps"][] = [];
	const { containerd, image } = bench.bed;
	const clients = new Map(bench.runtimes.map(({ name, type }) => [name, new Ctr(containerd, type, image)]));
	await byTurns(bench, bench.runs(10, 4), async (runtime, counted) => {
		const ctr = clients.get(runtime.name);
		if (ctr === undefined) return;
		const cold = await measureColdStart(ctr, image.name, runtime);
		if (counted) samples.add(`${id}.cold`, runtime.name, cold.totalMs);
		if (!runtime.ours) return;
		await turn(bench, vm, true);
		const warm = await measureColdStart(ctr, image.name, runtime);
		if (isWarm(cold) || !isWarm(warm)) throw new Error("a start was not what it was to be: warm or cold");
		await turn(bench, vm, false);
		if (!counted) return;
		samples.add(`${id}.total`, runtime.name, warm.totalMs);
		samples.add(`${id}.create`, runtime.name, warm.createMs);
		samples.add(`${id}.start`, runtime.name, warm.startMs);
		timelines.push(warm.steps);
	});
	return {
		figures: [
			samples.figure(`${id}.total`, "Create and Start, in a VM of the pool"),
			samples.figure(`${id}.create`, "Create, in a VM of the pool"),
			samples.figure(`${id}.start`, "Start, in a VM of the pool"),
			samples.figure(`${id}.cold`, "Create and Start, without a pool"),
		],
		timeline: medianTimeline(timelines),
	};
}

/** Real guests. */
export const warm: Scenario = {
	name: "warm",
	what: "a container in a VM of the pool, and by turns in one that is booted for it",
	vm: "ch-qemu",
	run: (bench) => run(bench, "ch-qemu", "warm"),
};

/** The shim's own part of it. */
export const warmShim: Scenario = {
	name: "warm-shim",
	what: "what is the shim's own of a start in a VM of the pool",
	vm: "null",
	run: (bench) => run(bench, "null", "warm-shim"),
};
