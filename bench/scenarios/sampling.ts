/**
 * What it costs to sample the memory of many VMs. A small process stands for each: the kernel's part of the work is the same, but for a proportional share, whose
 * cost grows with a process's memory and which is sampled for people alone.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { openSync, readSync } from "node:fs";
import { pid } from "node:process";
import { sampleMemory, unwatch, watchProcess } from "../../shim/host/memory.ts";
import type { MemorySample, Watch } from "../../shim/host/memory.ts";
import { startTimeOf } from "../../shim/host/processes.ts";
import { Samples } from "../results.ts";
import { OURS } from "../runtimes.ts";
import type { Bench, Scenario } from "../scenario.ts";
import { timed } from "../scenario.ts";

const PROCESSES = 1000;
const NANOS_PER_MS = 1_000_000;
const MOMENT_MS = 0.1;

/** Starts processes that sleep; they end with the first one. */
async function sleepers(count: number): Promise<{ readonly pids: readonly number[]; readonly end: () => void }> {
	const script = `for i in $(seq ${count}); do sleep 100000 & echo $!; done; echo; wait`;
	const child = spawn("sh", ["-c", script], { stdio: ["ignore", "pipe", "inherit"], detached: true });
	let said = "";
	while (!said.endsWith("\n\n")) said += String((await once(child.stdout, "data"))[0]);
	return { pids: said.trim().split("\n").map(Number), end: () => process.kill(-(child.pid ?? 0), "SIGKILL") };
}

/**
 * Processor time of the main thread so far (proc(5), schedstat: nanoseconds first). The kernel brings it up to date when the thread sleeps, so that it does for a
 * moment first; the file stays open, since opening it would count.
 */
function mainThreadClock(): () => number {
	const fd = openSync(`/proc/self/task/${pid}/schedstat`, "r");
	const text = Buffer.alloc(64);
	const never = new Int32Array(new SharedArrayBuffer(4));
	return () => {
		Atomics.wait(never, 0, 0, MOMENT_MS);
		return parseInt(text.toString("latin1", 0, readSync(fd, text, 0, text.length, 0))) / NANOS_PER_MS;
	};
}

/** Every VM's numbers, as the controller reads them. */
function readAll(sample: MemorySample, watches: readonly Watch[]): void {
	for (const watch of watches) if (sample.process(watch) === undefined) throw new Error("a process is gone");
}

async function run(bench: Bench) {
	const samples = new Samples();
	const { pids, end } = await sleepers(PROCESSES);
	const mainThreadMs = mainThreadClock();
	const watches = pids.flatMap((one) => watchProcess(one, startTimeOf(one) ?? 0n) ?? []);
	try {
		for (let round = 1; round <= bench.runs(200, 50); round++) {
			for (const [name, detail] of [
				["pages", {}],
				["time", { time: true }],
				["share", { share: true }],
			] as const) {
				// A turn of its own: what the loop did before does not count.
				await new Promise((resolve) => setImmediate(resolve));
				const before = mainThreadMs();
				const [sample, ms] = await timed(() => sampleMemory(detail));
				if (name === "pages") samples.add("sampling.main", OURS.name, mainThreadMs() - before);
				samples.add(`sampling.${name}`, OURS.name, ms);
				if (name !== "time") continue;
				const [, readMs] = await timed(async () => readAll(sample, watches));
				samples.add("sampling.read", OURS.name, readMs);
			}
		}
	} finally {
		watches.forEach(unwatch);
		end();
	}
	return {
		figures: [
			samples.figure("sampling.pages", `memory of ${PROCESSES} VMs`),
			samples.figure("sampling.main", "the main thread's processor time of it"),
			samples.figure("sampling.time", "the same with their CPU time, while memory is short"),
			samples.figure("sampling.read", "reading every VM's numbers out of a sample"),
			samples.figure("sampling.share", "the same with proportional shares, for `snpctl top`"),
		],
	};
}

/** The addon's sampler. */
export const sampling: Scenario = {
	name: "sampling",
	what: `one sample of the memory of ${PROCESSES} processes in place of VMs, on a thread of its own`,
	vm: "none",
	bare: true,
	run,
};
