/** `npm run check`: every check of the sources, each with its own line; goes on after a failure and ends with code 1. */

import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { REPOSITORY, run } from "./command.ts";
import { summaryLine } from "./report.ts";
import { CARGO_MANIFESTS, cargoEnvironment, runTap, UNIT_TESTS } from "./suites.ts";

interface Check {
	readonly name: string;
	readonly command: readonly [string, ...string[]];
	readonly env?: NodeJS.ProcessEnv;
}

const STEP_MS = 15 * 60_000;
const UNIT_FILE_S = 120;
const npx = (...args: string[]): readonly [string, ...string[]] => ["npx", "--no-install", ...args];
const script = (name: string, ...args: string[]): readonly [string, ...string[]] => [
	process.execPath,
	"--import=tsx",
	`scripts/${name}`,
	...args,
];

function cppFiles(): string[] {
	return readdirSync(join(REPOSITORY, "native/src"))
		.filter((name) => /\.(?:cc|h)$/.test(name))
		.map((name) => join("native/src", name));
}

/** clang-format is not in the set-up: where it is missing, its check says so and passes. */
function clangFormat(): Check {
	const found = (process.env["PATH"] ?? "").split(":").some((folder) => existsSync(join(folder, "clang-format")));
	if (found) return { name: "format of C++", command: ["clang-format", "--dry-run", "--Werror", ...cppFiles()] };
	return { name: "format of C++", command: ["echo", "not checked: clang-format is not installed (apt-get install clang-format)"] };
}

const CHECKS: readonly Check[] = [
	{ name: "protobuf codecs", command: ["scripts/gen-proto.sh"] },
	{ name: "format of TypeScript and JSON", command: npx("biome", "format") },
	{ name: "lint", command: npx("oxlint", "--type-aware", "--deny-warnings") },
	{ name: "types", command: npx("tsc", "-p", "tsconfig.json") },
	{ name: "rooms", command: script("check-rooms.ts") },
	{ name: "generated documents", command: script("generate-docs.ts", "--check") },
	clangFormat(),
	...CARGO_MANIFESTS.flatMap((manifest): Check[] => {
		const where = ["--manifest-path", manifest];
		return [
			{ name: `format of Rust in ${manifest}`, command: ["cargo", "fmt", "--all", "--check", ...where] },
			{
				name: `clippy in ${manifest}`,
				command: ["cargo", "clippy", "--workspace", "--all-targets", "--locked", ...where, "--", "-D", "warnings"],
				env: cargoEnvironment(),
			},
		];
	}),
];

const failed: string[] = [];
for (const { name, command, env } of CHECKS) {
	const [program, ...args] = command;
	const { ok } = await run(program, args, { timeoutMs: STEP_MS, quiet: true, ...(env === undefined ? {} : { env }) });
	console.log(`check: ${name}: ${ok ? "ok" : "FAILED"}`);
	if (!ok) failed.push(name);
}
const units = await runTap(UNIT_TESTS, 2, UNIT_FILE_S);
console.log(`check: unit tests: ${summaryLine(units)}`);
if (units.failed > 0) failed.push("unit tests");
if (failed.length > 0) {
	console.error(`check: failed: ${failed.join(", ")}`);
	process.exitCode = 1;
}
