/** Generates what is read by people from the schema: `deploy/config.toml` and `docs/config.md`. */

import { CONFIG_FILE_VARIABLE, DEFAULT_CONFIG_FILE } from "../base/names.ts";
import { describeConfig } from "./describe.ts";
import type { KeyDescription } from "./describe.ts";

const LINE_CHARACTERS = 100;

/** The shipped file: every key with its default, switched off by a `#`, so that later defaults take effect. */
export function configToml(): string {
	const lines = [
		"# Configuration of containerd-shim-snp. Generated from shim/config/schema.ts by `npm run docs`.",
		"# Every key is shown with its default. Take the # away to change one.",
	];
	for (const table of describeConfig()) {
		lines.push("");
		if (table.name !== "") lines.push(`# ${table.doc}`, `[${table.name}]`);
		for (const key of table.keys) {
			lines.push(...wrap(`${key.doc} ${capital(key.allowed)}.`).map((line) => `# ${line}`), `#${leaf(key)} = ${tomlValue(key.fallback)}`);
		}
	}
	return `${lines.join("\n")}\n`;
}

/** The manual page of the configuration. */
export function configMarkdown(): string {
	const parts = [
		"# Configuration",
		"",
		"Generated from `shim/config/schema.ts` by `npm run docs`.",
		"",
		`The file is the \`ConfigPath\` of the runtime's options in containerd's configuration, else the one that \`${CONFIG_FILE_VARIABLE}\` names, else \`${DEFAULT_CONFIG_FILE}\`.`,
		"If the last does not exist, the defaults hold; a file that was named must exist. After it, the files `*.toml` in the folder of the same name with `.d` at its end",
		"(`config.toml.d`) are read in the order of their names; a later value replaces an earlier one.",
		"",
		"A key or table that does not exist, and a value of the wrong type or out of its range, is an error: the next pod's creation fails with a text that names the file, the line and",
		"what is allowed. Pods that run keep what they were started with.",
	];
	for (const table of describeConfig()) {
		parts.push("", table.name === "" ? "## Top of the file" : `## [${table.name}]`, "");
		if (table.doc !== "") parts.push(table.doc, "");
		parts.push("| key | default | allowed | meaning |", "|---|---|---|---|");
		for (const key of table.keys) parts.push(`| \`${leaf(key)}\` | \`${tomlValue(key.fallback)}\` | ${key.allowed} | ${key.doc} |`);
	}
	return `${parts.join("\n")}\n`;
}

function leaf(key: KeyDescription): string {
	return key.path.at(-1) ?? "";
}

/** A TOML value: JSON's strings, numbers and booleans are TOML's too. */
function tomlValue(value: string | number | boolean): string {
	return JSON.stringify(value);
}

function capital(text: string): string {
	return text.slice(0, 1).toUpperCase() + text.slice(1);
}

function wrap(text: string): string[] {
	const lines: string[] = [];
	let current = "";
	for (const word of text.split(" ")) {
		if (current !== "" && current.length + word.length + 1 > LINE_CHARACTERS) {
			lines.push(current);
			current = word;
		} else {
			current = current === "" ? word : `${current} ${word}`;
		}
	}
	return [...lines, current];
}
