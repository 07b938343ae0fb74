/** What the results say of the machine and the program that they were measured with. */
import { readFileSync } from "node:fs";
import { cpus, release, totalmem } from "node:os";
import { join } from "node:path";
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

/** This machine. */
export function hostFacts(): HostFacts {
	return { kernel: release(), cpu: cpuName(), cpus: cpus().length, memoryGib: Math.round(totalmem() / GIB) };
}
