/** The memory that a runtime's own processes keep, over the number of pods. */
import { readFileSync } from "node:fs";
import { CaseContext, SLEEP } from "../../test/conformance/context.ts";
import type { CriBed } from "../../test/support/cri/bed.ts";
import { isDaemon } from "../../test/support/leftovers.ts";
import type { ProcessInfo } from "../../test/support/procfs.ts";
import { Samples, type Curve } from "../results.ts";
import { shimProgram, type Runtime } from "../runtimes.ts";
import type { Bench, Scenario } from "../scenario.ts";

const COUNTS: readonly number[] = [1, 10, 50, 200];
const QUICK_MAX = 50;
const KIB_PER_MIB = 1024;
/** Pods that start at a time: memory is what counts here. */
const AT_ONCE = 2;

/** Memory of processes in MiB. */
type Memory = {
	/**
	 * Each page counts for each process by its share of it (PSS, proc(5)). The daemon's count in full: here it shares Node.js with the bench, on a node with
	 * nobody.
	 */
	readonly pss: number;
	/** What no file is behind. */
	readonly anonymous: number;
};

/** The processes of a shim that live as long as its pods, or longer; no pod's own are among them. */
function shimProcesses(bed: CriBed, runtime: Runtime): ProcessInfo[] {
	const program = `/${shimProgram(runtime)} `;
	const isShim = (info: ProcessInfo): boolean => `/${info.commandLine} `.includes(program) && info.commandLine.includes(" -id ");
	return bed.containerd.processes().filter((info) => isShim(info) || (runtime.ours && isDaemon(info)));
}

/** A line of a process's smaps_rollup, in MiB. */
function readMib(pid: number, field: string): number {
	const text = readFileSync(`/proc/${pid}/smaps_rollup`, "latin1");
	return Number(new RegExp(`^${field}:\\s+(\\d+) kB$`, "m").exec(text)?.[1] ?? 0) / KIB_PER_MIB;
}

function memoryOf(processes: readonly ProcessInfo[]): Memory {
	const sum = (read: (info: ProcessInfo) => number): number => processes.reduce((all, info) => all + read(info), 0);
	return {
		pss: sum((info) => readMib(info.pid, isDaemon(info) ? "Rss" : "Pss")),
		anonymous: sum(({ pid }) => readMib(pid, "Anonymous")),
	};
}

async function measure(bench: Bench, runtime: Runtime, counts: readonly number[], samples: Samples): Promise<[number, number][]> {
	const context = new CaseContext(bench.bed, runtime.name, runtime.ours);
	const points: [number, number][] = [];
	try {
		let pods = 0;
		for (const count of counts) {
			while (pods < count) {
				const more = Math.min(AT_ONCE, count - pods);
				await Promise.all(Array.from({ length: more }, async () => await (await context.pod()).run(SLEEP)));
				pods += more;
			}
			const processes = shimProcesses(bench.bed, runtime);
			const { pss, anonymous } = memoryOf(processes);
			samples.add(`memory.${count}.pss`, runtime.name, pss / count);
			samples.add(`memory.${count}.anonymous`, runtime.name, anonymous / count);
			if (runtime.ours) samples.add(`memory.${count}.daemon`, runtime.name, memoryOf(processes.filter(isDaemon)).pss);
			points.push([count, pss / count]);
			bench.progress(`${runtime.name}, ${count} pods: ${(pss / count).toFixed(2)} MiB each`);
		}
		return points;
	} finally {
		await context.clean();
	}
}

async function run(bench: Bench) {
	const samples = new Samples();
	const counts = COUNTS.filter((count) => !bench.quick || count <= QUICK_MAX);
	const points: Record<string, [number, number][]> = {};
	for (const runtime of bench.runtimes) points[runtime.name] = await measure(bench, runtime, counts, samples);
	const curve: Curve = { name: "memory of the shim's processes per pod (PSS, the daemon's in full)", unit: "MiB", over: "pods", points };
	const figures = counts.flatMap((count) => [
		samples.figure(`memory.${count}.pss`, `PSS per pod, ${count} pods`, "MiB"),
		samples.figure(`memory.${count}.anonymous`, `anonymous memory per pod, ${count} pods`, "MiB"),
		samples.figure(`memory.${count}.daemon`, `the daemon alone, ${count} pods`, "MiB"),
	]);
	return { figures, curves: [curve] };
}

/** Memory. */
export const memory: Scenario = {
	name: "memory",
	what: "memory of the shim's own processes, the daemon included, at 1, 10, 50 and 200 pods",
	vm: "null",
	run,
};
