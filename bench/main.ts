/** `npm run bench`: what this runtime costs, beside runc in the same run. */
import { mkdir, mkdtemp, readFile, writeFile } from "node:fs/promises";
import { loadavg, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { CriBed } from "../test/support/cri/bed.ts";
import { Leftovers } from "../test/support/leftovers.ts";
import { requireBuilt } from "../test/support/paths.ts";
import { parseArguments, USAGE, type BenchOptions } from "./arguments.ts";
import { compare } from "./baseline.ts";
import { renderDocument } from "./document.ts";
import { untilGivenBack } from "./given-back.ts";
import { commitNow, hostFacts, versionOf } from "./host.ts";
import { requireLayers } from "./image-files.ts";
import { renderReport } from "./report.ts";
import { arranged, parseResults, updated, type Results, type ScenarioResults } from "./results.ts";
import type { Bench, Scenario } from "./scenario.ts";
import { chooseScenarios, SCENARIOS } from "./scenarios/all.ts";
import { renderTables, type Shown } from "./table.ts";
import { judge } from "./targets.ts";
import { buildTools, type Tools } from "./tools.ts";
import { UsageError } from "./usage-error.ts";

const DOCUMENT = fileURLToPath(new URL("../docs/performance.md", import.meta.url));

/** Templates want the memory of a VM free. */
const STATE_SIZE = "2g";

function progress(line: string): void {
	process.stderr.write(`${line}\n`);
}

/** Measures one scenario with a containerd of its own. */
async function measure(scenario: Scenario, options: BenchOptions, tools: Tools): Promise<ScenarioResults> {
	const { name, what, vm } = scenario;
	progress(`${name}: ${what}`);
	const [date, load1] = [new Date().toISOString(), loadavg()[0] ?? 0];
	const beganMs = performance.now();
	const bed = await CriBed.start({ version: options.containerd, runtimes: options.runtimes.slice(2), stateSize: STATE_SIZE });
	try {
		await bed.containerd.configure({ ...(vm === "ch-qemu" ? {} : { hypervisor: tools.nullVmm }), append: scenario.config ?? "" });
		let leftovers: Leftovers | undefined;
		const bench: Bench = {
			...{ bed, tools, quick: options.quick, runtimes: options.runtimes, profileFile: options.profileFile },
			runs: (usual, quick) => options.runs ?? (options.quick ? quick : usual),
			progress: (line) => progress(`${name}: ${line}`),
			givenBack: async () => {
				if (leftovers !== undefined) await untilGivenBack(leftovers);
			},
		};
		await scenario.prepare?.(bench);
		leftovers = await Leftovers.watch(bed.containerd);
		const { timeline = [], curves = [], figures } = await scenario.run(bench);
		if (scenario.bare !== true) requireLayers(bed.containerd);
		const left = await leftovers.settle();
		if (left.length > 0) throw new Error(`the runs left behind:\n  ${left.join("\n  ")}`);
		const seconds = (performance.now() - beganMs) / 1000;
		return {
			...{
				name,
				what,
				vm,
				date,
				command: commandLine(),
				commit: commitNow(),
				host: hostFacts(),
				containerd: await versionOf(bed.containerd),
			},
			...{ seconds, load1, figures, timeline, curves },
		};
	} catch (error) {
		const dir = await mkdtemp(join(tmpdir(), "snp-bench-logs-"));
		await bed.containerd.keepLogs(dir);
		progress(`logs are kept in ${dir}`);
		throw error;
	} finally {
		await bed.stop();
	}
}

/** The command as it is told: where results go says nothing of them. */
function commandLine(): string {
	const words = process.argv.slice(2).join(" ");
	const kept = words.replaceAll(/--(?:json|html|profile|baseline) \S+|--(?:update|write-docs)\b/g, "").replaceAll(/\s+/g, " ");
	return `npm run bench -- ${kept.trim()}`.replace(/ -- $/, "");
}

/**
 * Measures everything that was asked for; what fails is named in the results.
 * @param keep gets the results so far after each scenario: who ends the bench early has those
 */
async function measureAll(options: BenchOptions, keep: (results: Results) => Promise<void>): Promise<Results> {
	requireBuilt();
	const tools = buildTools();
	const scenarios: ScenarioResults[] = [];
	const failures: { scenario: string; reason: string }[] = [];
	const soFar = (): Results => ({ version: 3, runtimes: options.runtimes.map(({ name }) => name), scenarios, failures });
	try {
		for (const scenario of chooseScenarios(options.scenarios, options.quick)) {
			try {
				scenarios.push(await measure(scenario, options, tools));
			} catch (error) {
				const reason = error instanceof Error ? error.message : String(error);
				progress(`${scenario.name}: FAILED: ${reason}`);
				failures.push({ scenario: scenario.name, reason });
			}
			await keep(soFar());
		}
	} finally {
		tools.remove();
	}
	return soFar();
}

async function readResults(file: string): Promise<Results> {
	return parseResults(await readFile(file, "utf8"), file);
}

async function write(file: string | undefined, text: string): Promise<void> {
	if (file === undefined) return;
	await mkdir(dirname(file), { recursive: true });
	await writeFile(file, text);
	progress(`wrote ${file}`);
}

async function main(): Promise<void> {
	const names = SCENARIOS.map(({ name }) => name);
	const options = parseArguments(process.argv.slice(2), names);
	if (options === "help") return void process.stdout.write(`${USAGE}\n`);
	if (options === "list") return void process.stdout.write(SCENARIOS.map(({ name, what }) => `${name.padEnd(10)} ${what}\n`).join(""));
	// A baseline that can't be read is told before everything is measured.
	const baseline = options.baselineFile === undefined ? undefined : await readResults(options.baselineFile);
	const earlier = options.update && options.jsonFile !== undefined ? await readResults(options.jsonFile) : undefined;
	const whole = (measured: Results): Results => (earlier === undefined ? measured : updated(earlier, measured));
	const keep = (measured: Results): Promise<void> => write(options.jsonFile, `${JSON.stringify(whole(measured))}\n`);
	const measured = options.resultsFile === undefined ? whole(await measureAll(options, keep)) : await readResults(options.resultsFile);
	const { results, absent } = arranged(measured, names);
	const comparison = baseline === undefined ? {} : { comparison: compare(results, baseline) };
	const shown: Shown = { results, verdicts: judge(results), absent, ...comparison };
	process.stdout.write(renderTables(shown));
	await write(options.htmlFile, renderReport(shown));
	if (options.writeDocs) await write(DOCUMENT, renderDocument(shown));
	if (results.failures.length > 0) process.exitCode = 1;
}

main().catch((error: unknown) => {
	process.stderr.write(`bench: ${error instanceof Error ? error.message : String(error)}\n`);
	if (error instanceof UsageError) process.stderr.write(`${USAGE}\n`);
	process.exitCode = error instanceof UsageError ? 2 : 1;
});
