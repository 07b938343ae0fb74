/** The bench's own programs, built when it begins. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const COMPILE_TIMEOUT_MS = 120_000;

/** Paths of built programs. Whoever builds them calls `remove`. */
export type Tools = {
	/** A VMM and an agent that do nothing. */
	readonly nullVmm: string;
	/** Moves bytes through FIFOs, or a VM's vsock, and back. */
	readonly stdio: string;
	/** Runs a shim's command in a control group, timed. */
	readonly start: string;
	readonly remove: () => void;
};

/** Builds one program of one crate root. @throws Error with rustc's words */
function compile(folder: string, name: string, source: string): string {
	const program = join(folder, name);
	const path = new URL(source, import.meta.url).pathname;
	const flags = ["--edition", "2021", "-O", "-C", "strip=symbols", "-C", "target-feature=+crt-static"];
	execFileSync("rustc", [...flags, "-o", program, path], { timeout: COMPILE_TIMEOUT_MS, stdio: ["ignore", "inherit", "inherit"] });
	return program;
}

/** Builds all of them. @throws Error with rustc's words */
export function buildTools(): Tools {
	const folder = mkdtempSync(join(tmpdir(), "snp-bench-"));
	const remove = (): void => rmSync(folder, { recursive: true, force: true });
	try {
		return {
			nullVmm: compile(folder, "null-vmm", "null-vmm/main.rs"),
			stdio: compile(folder, "stdio", "stdio.rs"),
			start: compile(folder, "start", "start.rs"),
			remove,
		};
	} catch (error) {
		remove();
		throw error;
	}
}
