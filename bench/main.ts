/** `npm run bench`: cold starts through a private containerd, the shim beside runc in the same run. */
import { mkdtemp, writeFile } from "node:fs/promises";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { PrivateContainerd } from "../test/support/containerd.ts";
import { Ctr, RUNC_RUNTIME, SNP_RUNTIME } from "../test/support/ctr.ts";
import { buildBusyboxImage } from "../test/support/image.ts";
import { Leftovers } from "../test/support/leftovers.ts";
import { distBinDir, requireBuilt } from "../test/support/paths.ts";
import { parseArguments, USAGE, UsageError, type BenchOptions } from "./arguments.ts";
import { hostFacts, versionOf } from "./host.ts";
import { measureColdStart, measureStartCommand, type ColdStart } from "./measure.ts";
import { benchPods } from "./pod-bench.ts";
import { ratios, runtimeResult, type BenchResults, type RuntimeResult } from "./results.ts";
import { benchShim } from "./shim-bench.ts";
import { renderSvg } from "./svg.ts";
import { renderTables } from "./table.ts";

function progress(line: string): void {
	process.stderr.write(`${line}\n`);
}

/** Alternates between the runtimes, so that a change of the machine's load meets both. */
async function measure(containerd: PrivateContainerd, options: BenchOptions): Promise<Record<string, RuntimeResult>> {
	const image = await buildBusyboxImage(containerd.rootDir);
	const clients = [SNP_RUNTIME, RUNC_RUNTIME].map((runtime) => new Ctr(containerd, runtime, image));
	await clients[0]?.importImage(image);
	const firsts = new Map<string, ColdStart>();
	const runs = new Map<string, ColdStart[]>(clients.map(({ runtime }) => [runtime, []]));
	const starts = new Map<string, number[]>(clients.map(({ runtime }) => [runtime, []]));
	for (const ctr of clients) {
		firsts.set(ctr.runtime, await measureColdStart(ctr, image.name));
		progress(`first ${ctr.runtime}: ${firsts.get(ctr.runtime)?.totalMs.toFixed(0)} ms (not counted)`);
	}
	for (let n = 1; n <= options.runs; n++) {
		for (const ctr of clients) {
			const sample = await measureColdStart(ctr, image.name);
			runs.get(ctr.runtime)?.push(sample);
			progress(`run ${n} of ${options.runs}, ${ctr.runtime}: ${sample.totalMs.toFixed(0)} ms`);
		}
	}
	for (const ctr of clients) {
		const shim =
			ctr.runtime === SNP_RUNTIME ? join(distBinDir, "containerd-shim-snp-v2") : join(containerd.ctrPath, "../containerd-shim-runc-v2");
		for (let n = 1; n <= options.runs; n++) starts.get(ctr.runtime)?.push(await measureStartCommand(containerd, shim, ctr.newId("start")));
	}
	return Object.fromEntries(
		clients.map(({ runtime }) => {
			const first = firsts.get(runtime);
			if (first === undefined) throw new Error(`no first run of ${runtime}`);
			return [runtime, runtimeResult(first, runs.get(runtime) ?? [], starts.get(runtime) ?? [])];
		}),
	);
}

async function bench(options: BenchOptions): Promise<BenchResults> {
	requireBuilt();
	const load1 = loadavg()[0] ?? 0;
	const containerd = await PrivateContainerd.start({ version: options.containerd });
	try {
		const leftovers = await Leftovers.watch(containerd);
		const runtimes = await measure(containerd, options);
		const left = await leftovers.settle();
		if (left.length > 0) throw new Error(`the runs left behind:\n  ${left.join("\n  ")}`);
		const ours = runtimes[SNP_RUNTIME];
		const other = runtimes[RUNC_RUNTIME];
		if (ours === undefined || other === undefined) throw new Error("a runtime has no results");
		return {
			date: new Date().toISOString(),
			host: hostFacts(load1),
			containerd: await versionOf(containerd),
			runs: options.runs,
			runtimes,
			ratios: ratios(ours, other),
		};
	} catch (error) {
		const dir = await mkdtemp(join(tmpdir(), "snp-bench-logs-"));
		await containerd.keepLogs(dir);
		progress(`logs are kept in ${dir}`);
		throw error;
	} finally {
		await containerd.stop();
	}
}

async function main(): Promise<void> {
	const options = parseArguments(process.argv.slice(2));
	if (options === "help") {
		process.stdout.write(`${USAGE}\n`);
		return;
	}
	if (options.subject === "pods") return await benchPods(options, progress);
	if (options.subject === "shim") return await benchShim(options, progress);
	const results = await bench(options);
	process.stdout.write(renderTables(results, SNP_RUNTIME, RUNC_RUNTIME));
	if (options.jsonFile !== undefined) await writeFile(options.jsonFile, `${JSON.stringify(results, undefined, 2)}\n`);
	if (options.svgFile !== undefined) await writeFile(options.svgFile, renderSvg(results, SNP_RUNTIME, RUNC_RUNTIME));
}

main().catch((error: unknown) => {
	process.stderr.write(`bench: ${error instanceof Error ? error.message : String(error)}\n`);
	if (error instanceof UsageError) process.stderr.write(`${USAGE}\n`);
	process.exitCode = error instanceof UsageError ? 2 : 1;
});
