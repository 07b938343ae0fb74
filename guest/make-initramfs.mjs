/**
 * Writes the guest's initramfs: `node make-initramfs.mjs AGENT OUTPUT`. The agent is all there is; it
 * mounts everything else. /dev/console is needed before the agent has mounted /dev: the kernel opens
 * it as the standard streams of init.
 */
import { readFileSync, writeFileSync } from "node:fs";

import { cpioArchive } from "./cpio.mjs";

const [agent, output] = process.argv.slice(2);
if (agent === undefined || output === undefined) {
	console.error("usage: make-initramfs.mjs AGENT OUTPUT");
	process.exit(2);
}
const folders = ["dev", "proc", "run", "sys", "tmp"];
writeFileSync(
	output,
	cpioArchive([
		...folders.map((name) => /** @type {const} */ ({ kind: "dir", name, mode: name === "tmp" ? 0o1777 : 0o755 })),
		{ kind: "char", name: "dev/console", mode: 0o600, major: 5, minor: 1 },
		{ kind: "file", name: "init", mode: 0o755, data: readFileSync(agent) },
	]),
);
