/** The memory that a runtime's own processes keep, over the number of pods. */
import { readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { CaseContext, SLEEP } from "../../test/conformance/context.ts";
import type { CriBed } from "../../test/support/cri/bed.ts";
import { isDaemon } from "../../test/support/leftovers.ts";
import type { ProcessInfo } from "../../test/support/procfs.ts";
import { Samples, type Curve, type Figure } from "../results.ts";
import { shimProgram, type Runtime } from "../runtimes.ts";
import type { Bench, Scenario } from "../scenario.ts";
import { median } from "../statistics.ts";

const COUNTS: readonly number[] = [1, 10, 50, 200];
const QUICK_MAX = 50;
const KIB_PER_MIB = 1024;
/** Pods that start at a time: memory is what counts here. */
const AT_ONCE = 2;
const SAMPLES = 3;
/** So long nothing is asked of the processes before a sample: what a start took for a moment is given back. */
const SETTLE_MS = 2000;
const QUICK_SETTLE_MS = 1000;

/** Memory of processes in MiB. */
type Memory = {
	/**
	 * Each page counts for each process by its share of it (PSS, proc(5)). The daemon's count in full (RSS): here it shares Node.js with the bench, on a node with
	 * nobody.
	 */
	readonly pss: number;
	/** What no file is behind. */
	readonly anonymous: number;
};

/**
 * The processes of a shim that live as long as its pods, or longer; no pod's own are among them.
 * @throws Error when there is not one for each pod, and one daemon for all of ours
 */
function shimProcesses(bed: CriBed, runtime: Runtime, pods: number): ProcessInfo[] {
	const program = `/${shimProgram(runtime)} `;
	const isShim = (info: ProcessInfo): boolean => `/${info.commandLine} `.includes(program) && info.commandLine.includes(" -id ");
	const processes = bed.containerd.processes();
	const [shims, daemons] = [processes.filter(isShim), runtime.ours ? processes.filter(isDaemon) : []];
	if (shims.length !== pods || daemons.length !== (runtime.ours ? 1 : 0))
		throw new Error(`${pods} pods of ${runtime.name} have ${shims.length} shims and ${daemons.length} daemons`);
	return [...shims, ...daemons];
}

/** A line of a process's smaps_rollup, in MiB. @throws Error when it is not there */
function readMib(pid: number, field: string): number {
	const text = readFileSync(`/proc/${pid}/smaps_rollup`, "latin1");
	const kib = new RegExp(`^${field}:\\s+(\\d+) kB$`, "m").exec(text)?.[1];
	if (kib === undefined) throw new Error(`smaps_rollup of process ${pid} has no ${field}`);
	return Number(kib) / KIB_PER_MIB;
}

function memoryOf(processes: readonly ProcessInfo[]): Memory {
	const sum = (read: (info: ProcessInfo) => number): number => processes.reduce((all, info) => all + read(info), 0);
	return {
		pss: sum((info) => readMib(info.pid, isDaemon(info) ? "Rss" : "Pss")),
		anonymous: sum(({ pid }) => readMib(pid, "Anonymous")),
	};
}

type Points = [number, number][];

/** Adds up to `count` pods, then takes the samples. */
async function measureAt(
	bench: Bench,
	runtime: Runtime,
	context: CaseContext,
	pods: number,
	count: number,
	samples: Samples,
): Promise<void> {
	for (let there = pods; there < count; there += AT_ONCE)
		await Promise.all(Array.from({ length: Math.min(AT_ONCE, count - there) }, async () => await (await context.pod()).run(SLEEP)));
	for (let sample = 1; sample <= SAMPLES; sample++) {
		await delay(bench.quick ? QUICK_SETTLE_MS : SETTLE_MS);
		const processes = shimProcesses(bench.bed, runtime, count);
		const { pss, anonymous } = memoryOf(processes);
		samples.add(`memory.${count}.pss`, runtime.name, pss / count);
		samples.add(`memory.${count}.anonymous`, runtime.name, anonymous / count);
		if (runtime.ours) samples.add(`memory.${count}.daemon`, runtime.name, memoryOf(processes.filter(isDaemon)).pss);
		bench.progress(`${runtime.name}, ${count} pods: ${(pss / count).toFixed(2)} MiB each`);
	}
}

async function measure(bench: Bench, runtime: Runtime, counts: readonly number[], samples: Samples): Promise<void> {
	const context = new CaseContext(bench.bed, runtime.name, runtime.ours);
	try {
		let pods = 0;
		for (const count of counts) {
			await measureAt(bench, runtime, context, pods, count, samples);
			pods = count;
		}
	} finally {
		await context.clean();
		await bench.givenBack();
	}
}

/** The medians of a figure over the number of pods. */
function curveOf(name: string, kind: "pss" | "anonymous", counts: readonly number[], figures: readonly Figure[]): Curve {
	const points: Record<string, Points> = {};
	for (const count of counts) {
		const figure = figures.find(({ id }) => id === `memory.${count}.${kind}`);
		for (const [column, values] of Object.entries(figure?.samples ?? {})) (points[column] ??= []).push([count, median(values)]);
	}
	return { name, unit: "MiB", over: "pods", points };
}

async function run(bench: Bench) {
	const samples = new Samples();
	const counts = COUNTS.filter((count) => !bench.quick || count <= QUICK_MAX);
	for (const runtime of bench.runtimes) await measure(bench, runtime, counts, samples);
	const figures = counts.flatMap((count) => [
		samples.figure(`memory.${count}.pss`, `PSS per pod, ${count} pods (the daemon's RSS)`, "MiB"),
		samples.figure(`memory.${count}.anonymous`, `anonymous memory per pod, ${count} pods`, "MiB"),
		samples.figure(`memory.${count}.daemon`, `the daemon alone, ${count} pods (RSS)`, "MiB"),
	]);
	const curves = [
		curveOf("memory of the shim's processes per pod (PSS, the daemon's RSS)", "pss", counts, figures),
		curveOf("anonymous memory of the shim's processes per pod", "anonymous", counts, figures),
	];
	return { figures, curves };
}

/** Memory. */
export const memory: Scenario = {
	name: "memory",
	what: "memory of the shim's own processes, the daemon included, at 1, 10, 50 and 200 pods",
	vm: "null",
	run,
};
