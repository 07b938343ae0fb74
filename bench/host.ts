/** What the results say of the machine and the program that they were measured with. */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { cpus, release, totalmem } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { PrivateContainerd } from "../test/support/containerd.ts";
import { run } from "../test/support/process.ts";

const GIB = 2 ** 30;

/** A machine. */
export type HostFacts = { readonly kernel: string; readonly cpu: string; readonly cpus: number; readonly memoryGib: number };

/** The version that containerd tells of itself. */
export async function versionOf(containerd: PrivateContainerd): Promise<string> {
	const { stdout } = await run([join(containerd.ctrPath, "../containerd"), "--version"]);
	return stdout.trim().split(" ").at(2) ?? containerd.version;
}

function cpuName(): string {
	return readFileSync("/proc/cpuinfo", "utf8").match(/^model name\s*:\s*(.*)$/m)?.[1] ?? "unknown CPU";
}

const ROOT = fileURLToPath(new URL("..", import.meta.url));
/** Neither results nor texts change what is measured. */
const MEASURED: readonly string[] = ["--", ".", ":(exclude)bench/results", ":(exclude)docs", ":(exclude)*.md"];

/** What is checked out, with a plus sign when files that count differ from it; "unknown" outside of a checkout. */
export function commitNow(): string {
	const git = (...args: readonly string[]): string =>
		execFileSync("git", ["-C", ROOT, ...args], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
	try {
		const commit = git("rev-parse", "--short=10", "HEAD");
		return git("status", "--porcelain", ...MEASURED) === "" ? commit : `${commit}+`;
	} catch {
		return "unknown";
	}
}

/** This machine. */
export function hostFacts(): HostFacts {
	return { kernel: release(), cpu: cpuName(), cpus: cpus().length, memoryGib: Math.round(totalmem() / GIB) };
}
