/** The test suites: tap's unit tests, tap's end-to-end tests, cargo's. */

import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cacheDir } from "../test/support/paths.ts";
import { REPOSITORY, run } from "./command.ts";
import { countCargo, countTap, readTap, sum } from "./report.ts";
import type { Counts } from "./report.ts";

const MINUTE_MS = 60_000;

/** Cargo's settings: built results stay in the cache, in the folder of this checkout (scripts/lib.sh, `cargo_static`). */
export function cargoEnvironment(): NodeJS.ProcessEnv {
	const checkout = createHash("sha256").update(REPOSITORY.replace(/\/$/u, "")).digest("hex").slice(0, 16);
	return { CARGO_TARGET_DIR: join(cacheDir(), "cargo", checkout), CARGO_TERM_COLOR: "never" };
}

/** The product's workspace, and the stand-in VMM's vsock device, which is none of the product. */
export const CARGO_MANIFESTS: readonly string[] = ["Cargo.toml", "ch-qemu/vsock/Cargo.toml"];

/** Tests without containerd. A few boot a VM in the stand-in, or mount; all of them run as root in a minute or two. */
export const UNIT_TESTS: readonly string[] = ["test/!(e2e|support)/**/*.test.ts"];
/** Tests with containerd and VMs. */
export const END_TO_END_TESTS: readonly string[] = ["test/e2e/**/*.test.ts"];

/**
 * Runs tap on patterns of files.
 * @param jobs files at a time @param fileTimeoutS time for one file
 */
export async function runTap(patterns: readonly string[], jobs: number, fileTimeoutS: number): Promise<Counts> {
	await buildTap();
	const folder = mkdtempSync(join(tmpdir(), "snp-report-"));
	const report = join(folder, "report.tap");
	try {
		const args = ["tap", "--reporter=terse", `--output-file=${report}`, `--jobs=${jobs}`, `--timeout=${fileTimeoutS}`, ...patterns];
		const { ok } = await run("npx", args, { timeoutMs: 40 * MINUTE_MS });
		const tests = readTap(readFileSync(report, "utf8"));
		// What the reporter showed while others ran is easily lost among their output.
		for (const test of tests.filter(({ outcome }) => outcome === "failed"))
			console.log(`\nFAILED: ${test.path.join(" > ")}\n${test.detail}`);
		return honest(countTap(tests), ok);
	} catch (error) {
		console.error(`tap left no report: ${String(error)}`);
		return { passed: 0, failed: 1 };
	} finally {
		rmSync(folder, { recursive: true, force: true });
	}
}

/** Runs the tests of the Rust programs. */
export async function runCargoTests(): Promise<Counts> {
	const counts: Counts[] = [];
	for (const manifest of CARGO_MANIFESTS) {
		const args = ["test", "--workspace", "--locked", "--no-fail-fast", "--manifest-path", manifest];
		const { ok, output } = await run("cargo", args, { timeoutMs: 30 * MINUTE_MS, env: cargoEnvironment() });
		counts.push(honest(countCargo(output), ok));
	}
	// What an ordinary guest has no code for.
	const sample = ["test", "--locked", "--no-fail-fast", "-p", "snp-agent", "--features", "sample", "--lib", "--test", "confidential"];
	const { ok, output } = await run("cargo", sample, { timeoutMs: 30 * MINUTE_MS, env: cargoEnvironment() });
	counts.push(honest(countCargo(output), ok));
	return sum(counts);
}

/** A run that failed without a failed test, or that ran no test, counts as one failure. */
function honest(counts: Counts, ok: boolean): Counts {
	const silent = counts.failed === 0 && (!ok || counts.passed === 0);
	return silent ? { ...counts, failed: 1 } : counts;
}

/** tap generates the class of its tests from .taprc; done once for each version and configuration. */
async function buildTap(): Promise<void> {
	const stamp = join(REPOSITORY, "node_modules/.tap-built");
	const version = readFileSync(join(REPOSITORY, "node_modules/tap/package.json"));
	const wanted = createHash("sha256")
		.update(version)
		.update(readFileSync(join(REPOSITORY, ".taprc")))
		.digest("hex");
	if (read(stamp) === wanted) return;
	const { ok } = await run("npx", ["tap", "build"], { timeoutMs: 5 * MINUTE_MS, quiet: true });
	if (ok) writeFileSync(stamp, wanted);
}

function read(file: string): string | undefined {
	try {
		return readFileSync(file, "utf8");
	} catch {
		return undefined;
	}
}
