/** `npm run bench -- shim`: what is the shim's own of a pod's times, with a VMM that does nothing (`null-vmm`), beside runc in the same run. */
import { execFileSync } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { loadavg } from "node:os";
import { join } from "node:path";
import { CriBed } from "../test/support/cri/bed.ts";
import { SNP_HANDLER } from "../test/support/cri/containerd-config.ts";
import { Leftovers } from "../test/support/leftovers.ts";
import { distBinDir, requireBuilt } from "../test/support/paths.ts";
import type { BenchOptions } from "./arguments.ts";
import { hostFacts, versionOf } from "./host.ts";
import { measureStartCommand } from "./measure.ts";
import { figure, podFigures, renderPodSvg, renderPodTables, type Figure, type PodResults } from "./pod-results.ts";
import { HANDLERS, measurePod, type PodRun } from "./pods.ts";
import { CpuCount, measureMemory, POD_COUNTS } from "./shim-cost.ts";

const COMPILE_TIMEOUT_MS = 120_000;

/** Builds `null-vmm`. @returns its path */
function buildNullVmm(dir: string): string {
	const program = join(dir, "null-vmm");
	const source = new URL("null-vmm/main.rs", import.meta.url).pathname;
	const flags = ["--edition", "2021", "-O", "-C", "strip=symbols", "-C", "target-feature=+crt-static"];
	execFileSync("rustc", [...flags, "-o", program, source], { timeout: COMPILE_TIMEOUT_MS, stdio: ["ignore", "inherit", "inherit"] });
	return program;
}

async function measure(bed: CriBed, runs: number, progress: (line: string) => void): Promise<Figure[]> {
	const { containerd } = bed;
	const cpu = await CpuCount.begin(bed);
	const pods = new Map<string, PodRun[]>(HANDLERS.map((handler) => [handler, []]));
	const cpuMs = new Map<string, number[]>(HANDLERS.map((handler) => [handler, []]));
	const memory = new Map<string, number[]>();
	const starts = new Map<string, number[]>(HANDLERS.map((handler) => [handler, []]));
	// The first pod of a runtime builds images and starts daemons: it is not counted.
	for (const handler of HANDLERS) await measurePod(bed, handler);
	for (let n = 1; n <= runs; n++) {
		for (const handler of HANDLERS) {
			const before = cpu.read();
			pods.get(handler)?.push(await measurePod(bed, handler));
			cpuMs.get(handler)?.push(cpu.read() - before);
		}
		progress(`pod ${n} of ${runs}`);
	}
	for (const handler of HANDLERS) {
		memory.set(handler, await measureMemory(bed, handler));
		progress(`memory, ${handler}`);
	}
	for (const handler of HANDLERS) {
		const shim =
			handler === SNP_HANDLER ? join(distBinDir, "containerd-shim-snp-v2") : join(containerd.ctrPath, "../containerd-shim-runc-v2");
		for (let n = 1; n <= runs; n++) starts.get(handler)?.push(await measureStartCommand(containerd, shim, `start-${handler}-${n}`));
	}
	return [
		figure("start (the command by itself)", "ms", (handler) => starts.get(handler) ?? []),
		...podFigures(pods),
		figure("processor time per pod", "ms", (handler) => cpuMs.get(handler) ?? []),
		...POD_COUNTS.map((count, at) => figure(`memory per pod, ${count} pods`, "MiB", (handler) => [memory.get(handler)?.[at] ?? 0])),
	];
}

async function run(options: BenchOptions, progress: (line: string) => void): Promise<PodResults> {
	requireBuilt();
	const load1 = loadavg()[0] ?? 0;
	const bed = await CriBed.start({ version: options.containerd });
	try {
		await bed.containerd.configure({ hypervisor: buildNullVmm(bed.containerd.rootDir) });
		const leftovers = await Leftovers.watch(bed.containerd);
		const figures = await measure(bed, options.runs, progress);
		const left = await leftovers.settle();
		if (left.length > 0) throw new Error(`the runs left behind:\n  ${left.join("\n  ")}`);
		return { date: new Date().toISOString(), host: hostFacts(load1), containerd: await versionOf(bed.containerd), figures };
	} finally {
		await bed.stop();
	}
}

/** Measures, prints the table, and writes the files that were asked for. */
export async function benchShim(options: BenchOptions, progress: (line: string) => void): Promise<void> {
	const results = await run(options, progress);
	process.stdout.write(renderPodTables(results));
	if (options.jsonFile !== undefined) await writeFile(options.jsonFile, `${JSON.stringify(results, undefined, 2)}\n`);
	if (options.svgFile !== undefined) await writeFile(options.svgFile, renderPodSvg(results));
}
