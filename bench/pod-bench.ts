/** `npm run bench -- pods`: pods through containerd's CRI plugin, the shim beside runc in the same run. */
import { writeFile } from "node:fs/promises";
import { loadavg } from "node:os";
import { CriBed } from "../test/support/cri/bed.ts";
import { Leftovers } from "../test/support/leftovers.ts";
import { requireBuilt } from "../test/support/paths.ts";
import type { BenchOptions } from "./arguments.ts";
import { hostFacts, versionOf } from "./host.ts";
import { podResults, renderPodSvg, renderPodTables, type PodResults } from "./pod-results.ts";
import { buildTrafficImage, HANDLERS, measureFlows, measurePod, type PodRun } from "./pods.ts";

/** Traffic is measured for fewer pods than starts: each takes some ten seconds. */
const FLOW_RUNS_MAX = 3;

/** Alternates between the runtimes, so that a change of the machine's load meets both. */
async function measure(bed: CriBed, runs: number, progress: (line: string) => void) {
	const pods = new Map<string, PodRun[]>(HANDLERS.map((handler) => [handler, []]));
	const flows = new Map<string, number[][]>(HANDLERS.map((handler) => [handler, []]));
	// The first pod of a runtime builds images and starts daemons: it is not counted.
	for (const handler of HANDLERS) await measurePod(bed, handler);
	for (let n = 1; n <= runs; n++) {
		for (const handler of HANDLERS) {
			const run = await measurePod(bed, handler);
			pods.get(handler)?.push(run);
			progress(`pod ${n} of ${runs}, ${handler}: removal ${run.removalMs.toFixed(0)} ms`);
		}
	}
	const traffic = await buildTrafficImage(bed.containerd.rootDir);
	await bed.importImage(traffic.image);
	for (let n = 1; n <= Math.min(runs, FLOW_RUNS_MAX); n++) {
		for (const handler of HANDLERS) {
			const rates = await measureFlows(bed, handler, traffic);
			flows.get(handler)?.push(rates);
			progress(`traffic ${n}, ${handler}: ${rates.map((rate) => rate.toFixed(0)).join(", ")} MiB/s`);
		}
	}
	return { pods, flows };
}

async function run(options: BenchOptions, progress: (line: string) => void): Promise<PodResults> {
	requireBuilt();
	const load1 = loadavg()[0] ?? 0;
	const bed = await CriBed.start({ version: options.containerd });
	try {
		const leftovers = await Leftovers.watch(bed.containerd);
		const { pods, flows } = await measure(bed, options.runs, progress);
		const left = await leftovers.settle();
		if (left.length > 0) throw new Error(`the runs left behind:\n  ${left.join("\n  ")}`);
		const about = { date: new Date().toISOString(), host: hostFacts(load1), containerd: await versionOf(bed.containerd) };
		return podResults(about, pods, flows);
	} finally {
		await bed.stop();
	}
}

/** Measures, prints the tables, and writes the files that were asked for. */
export async function benchPods(options: BenchOptions, progress: (line: string) => void): Promise<void> {
	const results = await run(options, progress);
	process.stdout.write(renderPodTables(results));
	if (options.jsonFile !== undefined) await writeFile(options.jsonFile, `${JSON.stringify(results, undefined, 2)}\n`);
	if (options.svgFile !== undefined) await writeFile(options.svgFile, renderPodSvg(results));
}
