/**
 * What it costs to sample the memory of many VMs: `node --import=tsx bench/memory-sampling.ts [PROCESSES] [--json]`. Each stands for a VM by a small process:
 * the kernel's part of the work is the same, but for a proportional share, whose cost grows with a process's memory and which is sampled for people alone.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { cpus } from "node:os";
import { performance } from "node:perf_hooks";
import { argv, pid } from "node:process";
import { sampleMemory, unwatch, watchProcess } from "../shim/host/memory.ts";
import { startTimeOf } from "../shim/host/processes.ts";
import { summarize } from "./statistics.ts";

const DEFAULT_PROCESSES = 1000;
const ROUNDS = 200;

/** Starts this many processes that sleep; they end with the first one. */
async function sleepers(count: number): Promise<{ readonly pids: readonly number[]; readonly end: () => void }> {
	const script = `for i in $(seq ${count}); do sleep 100000 & echo $!; done; echo; wait`;
	const child = spawn("sh", ["-c", script], { stdio: ["ignore", "pipe", "inherit"], detached: true });
	let said = "";
	while (!said.endsWith("\n\n")) said += String((await once(child.stdout, "data"))[0]);
	return { pids: said.trim().split("\n").map(Number), end: () => process.kill(-(child.pid ?? 0), "SIGKILL") };
}

type Cost = { readonly wallMs: readonly number[]; readonly mainMs: readonly number[] };

/** Processor time of the main thread so far (proc(5), schedstat: nanoseconds first). */
const mainThreadMs = (): number => Number(readFileSync(`/proc/self/task/${pid}/schedstat`, "latin1").split(" ")[0]) / NANOS_PER_MS;
const NANOS_PER_MS = 1_000_000;

/** Wall time of a sample, and processor time that the main thread has with it. */
async function measure(
	detail: { readonly time: boolean; readonly share: boolean },
	read: (sample: Awaited<ReturnType<typeof sampleMemory>>) => void,
): Promise<Cost> {
	const wallMs: number[] = [];
	const mainMs: number[] = [];
	for (let round = 0; round < ROUNDS; round++) {
		// A turn of its own: what the loop did before does not count.
		await new Promise((resolve) => setImmediate(resolve));
		const before = mainThreadMs();
		const began = performance.now();
		const sample = await sampleMemory(detail);
		const landed = performance.now();
		read(sample);
		wallMs.push(landed - began);
		mainMs.push(mainThreadMs() - before);
	}
	return { wallMs, mainMs };
}

async function main(): Promise<void> {
	const count = Number(argv.find((word) => /^\d+$/u.test(word)) ?? DEFAULT_PROCESSES);
	const { pids, end } = await sleepers(count);
	try {
		const watches = pids.flatMap((pid) => watchProcess(pid, startTimeOf(pid) ?? 0n) ?? []);
		if (watches.length !== count) throw new Error(`${watches.length} of ${count} processes are watched`);
		const all = (sample: Awaited<ReturnType<typeof sampleMemory>>): void => {
			for (const watch of watches) if (sample.process(watch) === undefined) throw new Error("a process is gone");
		};
		const results = {
			"pages alone": await measure({ time: false, share: false }, () => undefined),
			"with CPU time (what the controller does)": await measure({ time: true, share: false }, () => undefined),
			"the same, and each VM's numbers read": await measure({ time: true, share: false }, all),
			"with proportional shares (snpctl top)": await measure({ time: false, share: true }, () => undefined),
		};
		const rows = Object.entries(results).map(([name, { wallMs, mainMs }]) => {
			const [wall, main] = [summarize(wallMs), summarize(mainMs)];
			return { name, wallMs: [wall.median, wall.p95], mainMs: [main.median, main.p95] };
		});
		if (argv.includes("--json")) console.log(JSON.stringify({ processes: count, processors: cpus().length, rows }));
		else {
			console.log(`${count} processes, ${ROUNDS} samples each; milliseconds, median and 95th percentile`);
			for (const { name, wallMs, mainMs } of rows) {
				const text = (values: readonly number[]): string => values.map((value) => value.toFixed(3).padStart(8)).join(" ");
				console.log(`${name.padEnd(42)} sample ${text(wallMs)}   main thread ${text(mainMs)}`);
			}
		}
		watches.forEach(unwatch);
	} finally {
		end();
	}
}

await main();
