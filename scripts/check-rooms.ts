/** `node --import tsx scripts/check-rooms.ts`: prints every import that breaks the rules of the rooms; exit code 1 when there is one. */

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { findViolations } from "./rooms.ts";
import type { SourceFile } from "./rooms.ts";

function sources(folder: string): SourceFile[] {
	return readdirSync(folder, { recursive: true, encoding: "utf8" })
		.filter((name) => name.endsWith(".ts"))
		.map((name) => ({ path: join(folder, name), text: readFileSync(join(folder, name), "utf8") }));
}

const files = ["shim", "native/src", "ch-qemu"].flatMap(sources);
const violations = findViolations(files);
for (const { path, line, imported, rule } of violations) console.error(`${path}:${line}: imports ${imported}: ${rule}`);
if (violations.length > 0) process.exitCode = 1;
else console.log(`rooms: ${files.length} files keep the rules`);
