/**
 * What it costs to sample the memory of many VMs. A small process stands for each, in groups with the limits that its pod would have: the kernel's part of the work is
 * the same, but for a proportional share, whose cost grows with a process's memory and which is sampled for people alone.
 */
import { closeSync, openSync, readSync } from "node:fs";
import { pid } from "node:process";
import { mountedHierarchies } from "../../shim/host/cgroups.ts";
import { limitedGroups, sampleMemory, unwatch, watchGroup, watchProcess } from "../../shim/host/memory.ts";
import type { MemorySample, Watch } from "../../shim/host/memory.ts";
import { startTimeOf } from "../../shim/host/processes.ts";
import { LimitedProcesses } from "../limited-processes.ts";
import { Samples } from "../results.ts";
import { OURS } from "../runtimes.ts";
import type { Bench, Scenario } from "../scenario.ts";
import { timed } from "../scenario.ts";

const PROCESSES = 1000;
const NANOS_PER_MS = 1_000_000;
const MOMENT_MS = 0.1;

/**
 * Processor time of the main thread so far (proc(5), schedstat: nanoseconds first). The kernel brings it up to date when the thread sleeps, so that it does for a
 * moment first; the file stays open until `close`, since opening it would count.
 */
function mainThreadClock(): { readonly ms: () => number; readonly close: () => void } {
	const fd = openSync(`/proc/self/task/${pid}/schedstat`, "r");
	const text = Buffer.alloc(64);
	const never = new Int32Array(new SharedArrayBuffer(4));
	const ms = (): number => {
		Atomics.wait(never, 0, 0, MOMENT_MS);
		return parseInt(text.toString("latin1", 0, readSync(fd, text, 0, text.length, 0))) / NANOS_PER_MS;
	};
	return { ms, close: () => closeSync(fd) };
}

/** What is watched, as the controller watches it. */
type Watched = { readonly vms: readonly Watch[]; readonly groups: readonly Watch[] };

/** Watches every process, and every group above one that has a limit. @throws Error when one is missing */
function watchAll({ all }: LimitedProcesses): Watched {
	const vms = all.flatMap((one) => watchProcess(one.pid, startTimeOf(one.pid) ?? 0n) ?? []);
	const hierarchies = mountedHierarchies();
	const paths = new Set(all.flatMap(({ cgroup }) => limitedGroups(cgroup, hierarchies)));
	const groups = [...paths].map((path) => watchGroup(path, hierarchies));
	// Each pod's group, and the one of all.
	if (vms.length !== PROCESSES || groups.length !== PROCESSES + 1)
		throw new Error(`${vms.length} processes and ${groups.length} groups are watched`);
	return { vms, groups };
}

/** Every VM's and every group's numbers, as the controller reads them. @throws Error when one is missing */
function readAll(sample: MemorySample, { vms, groups }: Watched): void {
	for (const watch of vms) if (sample.process(watch) === undefined) throw new Error("a process is gone");
	for (const watch of groups) if (sample.group(watch) === undefined) throw new Error("a group is gone");
}

async function measure(bench: Bench, watched: Watched, samples: Samples): Promise<void> {
	const clock = mainThreadClock();
	for (let round = 1; round <= bench.runs(200, 50); round++) {
		for (const [name, detail] of [
			["pages", {}],
			["time", { time: true }],
			["share", { share: true }],
		] as const) {
			// A turn of its own: what the loop did before does not count.
			await new Promise((resolve) => setImmediate(resolve));
			const before = clock.ms();
			const [sample, ms] = await timed(() => sampleMemory(detail));
			samples.add(`sampling.${name}`, OURS.name, ms);
			if (name === "share") continue;
			const [, readMs] = await timed(async () => readAll(sample, watched));
			samples.add(name === "pages" ? "sampling.main" : "sampling.time-main", OURS.name, clock.ms() - before);
			if (name === "time") samples.add("sampling.read", OURS.name, readMs);
		}
	}
	clock.close();
}

/** Samples of processes that are watched without groups: what the groups take is the rest. */
async function measureAlone(bench: Bench, samples: Samples): Promise<void> {
	for (let round = 1; round <= bench.runs(50, 20); round++) {
		await new Promise((resolve) => setImmediate(resolve));
		samples.add("sampling.alone", OURS.name, (await timed(() => sampleMemory()))[1]);
	}
}

async function run(bench: Bench) {
	const processes = await LimitedProcesses.start(`/${bench.bed.containerd.cgroupMark}-sampling`, PROCESSES);
	const samples = new Samples();
	let watched: Watch[] = [];
	try {
		const { vms, groups } = watchAll(processes);
		watched = [...vms, ...groups];
		await measure(bench, { vms, groups }, samples);
		groups.forEach(unwatch);
		watched = [...vms];
		await measureAlone(bench, samples);
	} finally {
		watched.forEach(unwatch);
		await processes.end();
	}
	return {
		figures: [
			samples.figure("sampling.pages", `memory of ${PROCESSES} VMs and of their control groups`),
			samples.figure("sampling.alone", "memory of the VMs without their groups"),
			samples.figure("sampling.main", "the main thread's processor time of it, reading it included"),
			samples.figure("sampling.time", "the same with their CPU time, while memory is short"),
			samples.figure("sampling.time-main", "the main thread's processor time of that, reading it included"),
			samples.figure("sampling.read", "reading every VM's and every group's numbers out of a sample"),
			samples.figure("sampling.share", "the same with proportional shares, for `snpctl top`"),
		],
	};
}

/** The addon's sampler. */
export const sampling: Scenario = {
	name: "sampling",
	what: `one sample of the memory of ${PROCESSES} processes in place of VMs, each in a control group below one with a limit, on a thread of its own`,
	vm: "none",
	bare: true,
	run,
};
