/**
 * `npm run conformance`: pods through the container runtime interface, under runc and under us side by side, on each containerd.
 * `--containerd 1.6,1.7,2.1,2.4` (or `all`; `1.6,2` when left out) chooses containerds, which are fetched when they are not there;
 * `--handler runc,snp,snp-sandbox` (the last one: the same through containerd 2.x's Sandbox API) and `--case TEXT,TEXT` (any of them in a case's id
 * or name) narrow it. The exit code is not 0 when there is a difference that
 * `differences.json` does not list, or a listed one that is none.
 */
import { join } from "node:path";
import { parseArgs } from "node:util";
import { containerdVersions, everydayVersions, isContainerdVersion, repositoryDir, requireBuilt } from "../support/paths.ts";
import { runOk } from "../support/process.ts";
import { CASES } from "./cases.ts";
import { HANDLERS, judge, readDifferences, runSuite, type Outcome } from "./suite.ts";

/** What `2` stands for as long as Debian has it. */
const DEBIAN_2 = "2.1";
const FETCH_TIMEOUT_MS = 1_200_000;

function list(text: string, known: readonly string[], flag: string): string[] {
	const words = text.split(",");
	const unknown = words.find((word) => !known.includes(word));
	if (unknown !== undefined) throw new Error(`--${flag}: ${unknown} is not one of ${known.join(", ")}`);
	return words;
}

function row(cells: readonly string[], widths: readonly number[]): string {
	return `| ${cells.map((cell, index) => cell.padEnd(widths[index] ?? 0)).join(" | ")} |`;
}

function cell(outcome: Outcome | undefined): string {
	if (outcome === undefined) return "";
	return `${outcome.failure === undefined ? "pass" : "FAIL"} ${(outcome.durationMs / 1000).toFixed(1)} s`;
}

/** One line for each case, one column for each runtime on each containerd. */
function table(outcomes: readonly Outcome[]): string[] {
	const columns = [...new Set(outcomes.map(({ version, handler }) => `${version} ${handler}`))];
	const ids = [...new Set(outcomes.map(({ caseId }) => caseId))];
	const lines = ids.map((id) => [
		id,
		...columns.map((column) => cell(outcomes.find((entry) => entry.caseId === id && `${entry.version} ${entry.handler}` === column))),
	]);
	const all = [["case", ...columns], ...lines];
	const widths = ["", ...columns].map((_, index) => Math.max(...all.map((cells) => cells[index]?.length ?? 0)));
	const rule = `|${widths.map((width) => "-".repeat(width + 2)).join("|")}|`;
	return [row(all[0] ?? [], widths), rule, ...lines.map((cells) => row(cells, widths))];
}

async function main(): Promise<void> {
	const { values } = parseArgs({
		options: {
			containerd: { type: "string", default: everydayVersions.join(",") },
			handler: { type: "string", default: HANDLERS.join(",") },
			case: { type: "string", default: "" },
		},
	});
	const asked = values.containerd === "all" ? containerdVersions.join(",") : values.containerd.replace(DEBIAN_2, "2");
	const versions = list(asked, containerdVersions, "containerd").filter(isContainerdVersion);
	const handlers = list(values.handler, HANDLERS, "handler");
	const texts = values.case.split(",");
	const cases = CASES.filter(({ id, name }) => texts.some((text) => id.includes(text) || name.includes(text)));
	if (cases.length === 0) throw new Error(`--case: no case has ${JSON.stringify(values.case)} in its name`);
	requireBuilt();
	for (const version of versions)
		await runOk([join(repositoryDir, "scripts/fetch-containerd.sh"), version], { timeoutMs: FETCH_TIMEOUT_MS });
	const outcomes = await runSuite({
		versions,
		handlers,
		cases,
		onOutcome: (outcome) => {
			const why = outcome.failure === undefined ? "" : `\n    ${outcome.failure.replaceAll("\n", "\n    ")}`;
			process.stdout.write(`containerd ${outcome.version} ${outcome.handler.padEnd(11)} ${outcome.caseId}: ${cell(outcome)}${why}\n`);
		},
	});
	process.stdout.write(`\n${table(outcomes).join("\n")}\n\n`);
	const differences = readDifferences();
	const wrong = judge(outcomes, differences, CASES);
	for (const { case: id, reason } of differences) process.stdout.write(`known difference ${id}: ${reason}\n`);
	for (const line of wrong) process.stdout.write(`wrong: ${line}\n`);
	const passed = outcomes.filter(({ failure }) => failure === undefined).length;
	process.stdout.write(
		`${cases.length} cases, ${passed} of ${outcomes.length} runs passed, ${differences.length} known differences, ${wrong.length} wrong\n`,
	);
	if (wrong.length > 0) process.exitCode = 1;
}

main().catch((error: unknown) => {
	process.stderr.write(`conformance: ${error instanceof Error ? error.message : String(error)}\n`);
	process.exitCode = 1;
});
