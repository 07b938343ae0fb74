/** First file systems for guests that misbehave, and programs that pose as a VMM. */
import { chmod, writeFile } from "node:fs/promises";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { cpio } from "./archive.ts";
import { busyboxPath } from "./image.ts";

/**
 * Writes an initramfs whose first process is a shell script in place of the agent.
 * @returns its path.
 */
export async function buildInitramfs(dir: string, name: string, script: string): Promise<string> {
	const file = join(dir, `${name}.cpio`);
	await writeFile(
		file,
		cpio([
			{ kind: "folder", path: "bin" },
			{ kind: "folder", path: "dev" },
			{ kind: "device", path: "dev/console", major: 5, minor: 1 },
			{ kind: "file", path: "bin/busybox", data: readFileSync(busyboxPath()), mode: 0o755 },
			{ kind: "file", path: "init", data: Buffer.from(`#!/bin/busybox sh\n${script}\n`), mode: 0o755 },
		]),
	);
	return file;
}

/** Writes an executable shell script. @returns its path. */
export async function buildScript(dir: string, name: string, text: string): Promise<string> {
	const file = join(dir, name);
	await writeFile(file, `#!/bin/sh\n${text}\n`);
	await chmod(file, 0o755);
	return file;
}
