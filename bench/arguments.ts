/** The bench's command line. */
import { parseArgs } from "node:util";
import { containerdVersions, isContainerdVersion, type ContainerdVersion } from "../test/support/paths.ts";
import { OURS, parseRuntime, RUNC, type Runtime } from "./runtimes.ts";
import { UsageError } from "./usage-error.ts";

export type BenchOptions = {
	/** Names of the scenarios that run; empty: all. */
	readonly scenarios: readonly string[];
	/** Few samples, and nothing that takes long. */
	readonly quick: boolean;
	/** Samples of everything that is measured again and again; each scenario's own number when undefined. */
	readonly runs: number | undefined;
	readonly containerd: ContainerdVersion;
	/** Ours first, then runc, then the others. */
	readonly runtimes: readonly Runtime[];
	readonly jsonFile: string | undefined;
	/** Whether the numbers that are in `jsonFile` stay, but for those of the scenarios that run. */
	readonly update: boolean;
	readonly htmlFile: string | undefined;
	/** Results of an earlier run to compare with. */
	readonly baselineFile: string | undefined;
	/** Results that are shown again; nothing is measured. */
	readonly resultsFile: string | undefined;
	/** Whether docs/performance.md is written. */
	readonly writeDocs: boolean;
	/** Where the flame graph of snpd goes (the scenario `loop`). */
	readonly profileFile: string | undefined;
};

export const USAGE = `usage: npm run bench -- [SCENARIO ...] [options]
  SCENARIO               what to measure (default: all); --list names them
  --list                 the scenarios
  --quick                few samples, at most 50 pods: under 5 minutes
  --runs N               samples of each runtime, 1 to 1000 (default: each scenario's own number)
  --containerd LINE      1.6, 1.7 or 2 (default: 2)
  --runtime NAME=TYPE[,config=FILE]
                         another installed runtime beside runc, such as kata=io.containerd.kata.v2,config=/etc/kata.toml; may be repeated
  --json FILE            all numbers (default: bench/results/latest.json)
  --update               keeps what is in that file of scenarios that do not run now
  --html FILE            the report (default: beside the numbers)
  --baseline FILE        the numbers of an earlier run: says what is better or worse beyond noise
  --from FILE            measures nothing: shows these numbers again
  --write-docs           writes docs/performance.md
  --profile FILE         a flame graph of snpd in the scenario loop, as SVG (the profile itself goes beside it)`;

const RUNS_MAX = 1000;
const DEFAULT_JSON = "bench/results/latest.json";

function parseRuns(text: string | undefined): number | undefined {
	if (text === undefined) return undefined;
	const runs = Number(text);
	if (!/^\d+$/.test(text) || runs < 1 || runs > RUNS_MAX)
		throw new UsageError(`--runs: ${JSON.stringify(text)} is not a whole number from 1 to ${RUNS_MAX}`);
	return runs;
}

function parseContainerd(text: string | undefined): ContainerdVersion {
	if (text === undefined) return "2";
	if (!isContainerdVersion(text))
		throw new UsageError(`--containerd: ${JSON.stringify(text)} is not one of ${containerdVersions.join(", ")}`);
	return text;
}

function parseFile(flag: string, text: string | undefined): string | undefined {
	if (text === "") throw new UsageError(`${flag}: the file's name is empty`);
	return text;
}

function parseScenarios(words: readonly string[], known: readonly string[]): readonly string[] {
	for (const word of words)
		if (!known.includes(word)) throw new UsageError(`${JSON.stringify(word)} is no scenario; there are ${known.join(", ")}`);
	return words;
}

function parseRuntimes(texts: readonly string[]): readonly Runtime[] {
	const others = texts.map(parseRuntime);
	const twice = others.find(({ name }, at) => others.findIndex((other) => other.name === name) < at);
	if (twice !== undefined) throw new UsageError(`--runtime: the name ${twice.name} stands for two runtimes`);
	return [OURS, RUNC, ...others];
}

function read(argv: readonly string[]) {
	const string = { type: "string" } as const;
	const flag = { type: "boolean" } as const;
	try {
		return parseArgs({
			args: [...argv],
			allowPositionals: true,
			options: {
				...{ runs: string, containerd: string, json: string, html: string, baseline: string, from: string, profile: string },
				...{ quick: flag, update: flag, "write-docs": flag, list: flag, help: flag, runtime: { type: "string", multiple: true } },
			},
		});
	} catch (error) {
		throw new UsageError(error instanceof Error ? error.message : String(error));
	}
}

/**
 * Reads the arguments behind the program's name.
 * @param known the names of all scenarios
 * @returns the options; `help` or `list` when these were asked for
 * @throws UsageError that names the wrong argument and what is allowed.
 */
export function parseArguments(argv: readonly string[], known: readonly string[]): BenchOptions | "help" | "list" {
	const { values, positionals } = read(argv);
	if (values.help === true) return "help";
	if (values.list === true) return "list";
	const resultsFile = parseFile("--from", values.from);
	if (resultsFile !== undefined && positionals.length > 0) throw new UsageError("--from measures nothing: it takes no scenario");
	if (resultsFile !== undefined && values.update === true) throw new UsageError("--from measures nothing: there is nothing to --update");
	const jsonFile = parseFile("--json", values.json) ?? (resultsFile === undefined ? DEFAULT_JSON : undefined);
	return {
		scenarios: parseScenarios(positionals, known),
		quick: values.quick ?? false,
		runs: parseRuns(values.runs),
		containerd: parseContainerd(values.containerd),
		runtimes: parseRuntimes(values.runtime ?? []),
		jsonFile,
		update: values.update ?? false,
		htmlFile: parseFile("--html", values.html) ?? (jsonFile ?? resultsFile)?.replace(/(\.json)?$/, ".html"),
		baselineFile: parseFile("--baseline", values.baseline),
		resultsFile,
		writeDocs: values["write-docs"] ?? false,
		profileFile: parseFile("--profile", values.profile),
	};
}
