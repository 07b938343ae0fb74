/** The bench's command line. */
import { parseArgs } from "node:util";
import { containerdVersions, isContainerdVersion, type ContainerdVersion } from "../test/support/paths.ts";

export type BenchOptions = {
	/** Cold starts by containerd's tasks, pods through CRI, or pods whose VM is none. */
	readonly subject: "cold-start" | "pods" | "shim";
	/** Measured cold starts of each runtime. */
	readonly runs: number;
	readonly containerd: ContainerdVersion;
	/** Where the results go as JSON. */
	readonly jsonFile: string | undefined;
	/** Where the picture goes. */
	readonly svgFile: string | undefined;
};

export const USAGE = `usage: npm run bench -- [pods|shim] [--runs N] [--containerd 1.6|2] [--json FILE] [--svg FILE]
  pods               pods through CRI (start, removal, network) instead of cold starts of containers
  shim               what is the shim's own of it: pods whose VM does nothing, with processor time and memory
  --runs N           measured starts of each runtime, 1 to 1000 (default: 5)
  --containerd LINE  1.6 or 2 (default: 2)
  --json FILE        writes all numbers as JSON; the picture goes beside it unless --svg says where
  --svg FILE         writes the picture`;

const RUNS_DEFAULT = 5;
const RUNS_MAX = 1000;

/** A mistake in the arguments; its text is for the user. */
export class UsageError extends Error {
	override readonly name = "UsageError";
}

function parseRuns(text: string | undefined): number {
	if (text === undefined) return RUNS_DEFAULT;
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

function isSubject(text: string): text is BenchOptions["subject"] {
	return text === "cold-start" || text === "pods" || text === "shim";
}

function read(argv: readonly string[]) {
	try {
		const string = { type: "string" } as const;
		return parseArgs({
			args: [...argv],
			allowPositionals: true,
			options: { runs: string, containerd: string, json: string, svg: string, help: { type: "boolean" } },
		});
	} catch (error) {
		throw new UsageError(error instanceof Error ? error.message : String(error));
	}
}

/**
 * Reads the arguments behind the program's name.
 * @returns the options, or `help` when the usage was asked for.
 * @throws UsageError that names the wrong argument and what is allowed.
 */
export function parseArguments(argv: readonly string[]): BenchOptions | "help" {
	const { values, positionals } = read(argv);
	const [subject = "cold-start"] = positionals;
	if (positionals.length > 1 || !isSubject(subject))
		throw new UsageError(`${JSON.stringify(positionals.join(" "))} is not what this can measure: give pods, shim, or nothing`);
	if (values.help === true) return "help";
	const jsonFile = parseFile("--json", values.json);
	const svgFile = parseFile("--svg", values.svg) ?? jsonFile?.replace(/(\.json)?$/, ".svg");
	return { subject, runs: parseRuns(values.runs), containerd: parseContainerd(values.containerd), jsonFile, svgFile };
}
