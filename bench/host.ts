/** What the results say of the machine and the program that they were measured with. */
import { readFileSync } from "node:fs";
import { cpus, release } from "node:os";
import { join } from "node:path";
import type { PrivateContainerd } from "../test/support/containerd.ts";
import { run } from "../test/support/process.ts";

/** A machine; `load1` is its load when the measurement began. */
export type HostFacts = { readonly kernel: string; readonly cpu: string; readonly cpus: number; readonly load1: number };

/** The version that containerd tells of itself. */
export async function versionOf(containerd: PrivateContainerd): Promise<string> {
	const { stdout } = await run([join(containerd.ctrPath, "../containerd"), "--version"]);
	return stdout.trim().split(" ").at(2) ?? containerd.version;
}

function cpuName(): string {
	return readFileSync("/proc/cpuinfo", "utf8").match(/^model name\s*:\s*(.*)$/m)?.[1] ?? "unknown CPU";
}

/** This machine. */
export function hostFacts(load1: number): HostFacts {
	return { kernel: release(), cpu: cpuName(), cpus: cpus().length, load1 };
}
