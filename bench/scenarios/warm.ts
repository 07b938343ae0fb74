/** A container in a VM that was booted before, by turns with one whose VM is booted for it. */
import { join } from "node:path";
import { Ctr } from "../../test/support/ctr.ts";
import { distBinDir } from "../../test/support/paths.ts";
import { runOk } from "../../test/support/process.ts";
import { eventually } from "../../test/support/retry.ts";
import { measureColdStart, OneContainer, type ColdStart, type Started } from "../measure.ts";
import { measurePod } from "../pods.ts";
import { Samples } from "../results.ts";
import { OURS } from "../runtimes.ts";
import { byTurns, type Bench, type Scenario } from "../scenario.ts";
import { medianTimeline } from "../timelines.ts";

const WAIT_MS = 120_000;
const SNPCTL_MS = 15_000;
/** Starts in a row, more than the pool has: it refills meanwhile. */
const ROW = 6;
const ROW_POOL = 3;

/** Gives the pool so many VMs, none for 0, and waits until they are ready. */
async function resize({ bed: { containerd }, tools }: Bench, vm: Scenario["vm"], size: number): Promise<void> {
	const append = size === 0 ? "" : `[pool]\nsize = ${size}\n`;
	await containerd.configure({ ...(vm === "null" ? { hypervisor: tools.nullVmm } : {}), append });
	const argv = containerd.inside(join(distBinDir, "snpctl"), "--state-dir", containerd.stateDir, "--json", "pool");
	await eventually("the pool", WAIT_MS, async () => {
		const { vms } = JSON.parse((await runOk(argv, { timeoutMs: SNPCTL_MS })).stdout) as {
			readonly vms: readonly { readonly state: string }[];
		};
		const ready = vms.filter(({ state }) => state === "ready").length;
		return (size === 0 ? vms.length === 0 : ready === size) ? true : undefined;
	});
}

const isWarm = ({ steps }: Pick<Started, "steps">): boolean => steps.some(({ step }) => step === "pool-take");

/** Does something while a VM is ready, and gives back all that is left of it and of the pool. */
async function withPool<T>(bench: Bench, vm: Scenario["vm"], size: number, work: (refilling: Bench) => Promise<T>): Promise<T> {
	await resize(bench, vm, size);
	try {
		// What the pool refills itself with is no pod's.
		return await work({ ...bench, givenBack: () => Promise.resolve() });
	} finally {
		await resize(bench, vm, 0);
		await bench.givenBack();
	}
}

/** Several starts right after one another. */
async function startInRow(bench: Bench, ctr: Ctr): Promise<Started[]> {
	const containers: OneContainer[] = [];
	try {
		for (let at = 1; at <= ROW; at++) containers.push(await OneContainer.make(ctr, bench.bed.image.name, OURS));
		const started: Started[] = [];
		for (const container of containers) started.push(await container.start());
		return started;
	} finally {
		for (const container of containers) await container.close();
	}
}

/** Cold and warm starts of containers by containerd's tasks, and warm pods with their networks through CRI. */
async function single(bench: Bench, vm: Scenario["vm"], id: string, samples: Samples, clients: ReadonlyMap<string, Ctr>) {
	const timelines: ColdStart["steps"][] = [];
	await byTurns(bench, bench.runs(10, 3), async (runtime, counted) => {
		const ctr = clients.get(runtime.name);
		if (ctr === undefined) return;
		const cold = await measureColdStart(bench, ctr, runtime);
		if (counted) samples.add(`${id}.cold`, runtime.name, cold.totalMs);
		if (!runtime.ours) return;
		const warm = await withPool(bench, vm, 1, (refilling) => measureColdStart(refilling, ctr, runtime));
		const pod = await withPool(bench, vm, 1, (refilling) => measurePod(refilling, runtime));
		if (isWarm(cold) || !isWarm(warm) || !isWarm(pod)) throw new Error("a start was not what it was to be: warm or cold");
		if (!counted) return;
		samples.add(`${id}.total`, runtime.name, warm.totalMs);
		samples.add(`${id}.create`, runtime.name, warm.createMs);
		samples.add(`${id}.start`, runtime.name, warm.startMs);
		samples.add(`${id}.pod`, runtime.name, pod.runPodMs + pod.startContainerMs);
		timelines.push(warm.steps);
	});
	return medianTimeline(timelines);
}

/** @param id what the figures' names begin with */
async function run(bench: Bench, vm: Scenario["vm"], id: string) {
	const samples = new Samples();
	const { containerd, image } = bench.bed;
	const clients = new Map(bench.runtimes.map(({ name, type }) => [name, new Ctr(containerd, type, image)]));
	const timeline = await single(bench, vm, id, samples, clients);
	const ctr = clients.get(OURS.name) ?? new Ctr(containerd, OURS.type, image);
	for (let round = 1; round <= bench.runs(4, 1); round++) {
		const row = await withPool(bench, vm, ROW_POOL, (refilling) => startInRow(refilling, ctr));
		const found = row.filter(isWarm).length;
		samples.addTogether(
			`${id}.row`,
			OURS.name,
			row.map(({ totalMs }) => totalMs),
		);
		samples.add(`${id}.row-warm`, OURS.name, found);
		bench.progress(`${found} of ${ROW} in a row found a VM`);
	}
	return {
		figures: [
			samples.figure(`${id}.total`, "Create and Start, in a VM of the pool"),
			samples.figure(`${id}.create`, "Create, in a VM of the pool"),
			samples.figure(`${id}.start`, "Start, in a VM of the pool"),
			samples.figure(`${id}.cold`, "Create and Start, without a pool"),
			samples.figure(`${id}.pod`, "a pod with its network through CRI, in a VM of the pool, until its container runs"),
			samples.figure(`${id}.row`, `Create and Start, each of ${ROW} in a row, with a pool of ${ROW_POOL} that refills`),
			samples.figure(`${id}.row-warm`, `how many of ${ROW} in a row found a VM`, "", "more"),
		],
		timeline,
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
