/**
 * `npm run docs`: writes what is generated from the sources (configuration and errors). With `--check` it writes nothing and ends with
 * code 1 when a file differs.
 */

import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import process from "node:process";
import { configMarkdown, configToml } from "../shim/config/document.ts";
import { errorsMarkdown } from "./errors-document.ts";

const GENERATED: readonly { readonly path: string; readonly text: () => string }[] = [
	{ path: "deploy/config.toml", text: configToml },
	{ path: "docs/config.md", text: configMarkdown },
	{ path: "docs/errors.md", text: errorsMarkdown },
];

const check = process.argv.includes("--check");
for (const { path, text } of GENERATED) {
	const file = fileURLToPath(new URL(`../${path}`, import.meta.url));
	const wanted = text();
	if (current(file) === wanted) continue;
	if (check) {
		console.error(`${path} is not what the sources say: run npm run docs`);
		process.exitCode = 1;
	} else {
		writeFileSync(file, wanted);
		console.log(`wrote ${path}`);
	}
}

function current(file: string): string | undefined {
	try {
		return readFileSync(file, "utf8");
	} catch {
		return undefined;
	}
}
