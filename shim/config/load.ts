/** Reads the configuration: a file and its drop-ins, each checked on its own so that an error names the file that is wrong. */

import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { parse, TomlError } from "smol-toml";
import * as v from "valibot";
import { errnoOf, messageOf, ShimError } from "../base/errors.ts";
import { findConflict } from "./conflicts.ts";
import { describeConfig, findKey } from "./describe.ts";
import { lineOfKey } from "./locate.ts";
import { ConfigSchema, freeze } from "./schema.ts";
import type { Config } from "./schema.ts";
import { suggest } from "./suggest.ts";

const MAX_FILE_BYTES = 1024 * 1024;
const MAX_DROP_INS = 256;
const MAX_ISSUES = 5;

type Table = Record<string, unknown>;

/**
 * Reads `file` and then `<file>.d/*.toml` in the order of their names, later values over earlier ones, and fills in defaults.
 * Files that the configuration names are not looked at.
 * @param options `required`: the file was named by somebody, so it must exist; else a missing one means defaults
 * @throws ShimError `config.unreadable`, or `config.invalid` with file, line, key, the value found and what is allowed, or the keys that exclude each other
 */
export async function loadConfig(file: string, options: { readonly required: boolean }): Promise<Config> {
	const main = await readTable(file, options.required);
	let merged = main ?? {};
	for (const dropIn of await dropInsOf(file)) {
		const table = await readTable(dropIn, true);
		if (table !== undefined && "state_dir" in table) {
			throw new ShimError("config.invalid", `${dropIn}: state_dir can't be set in a drop-in`, {
				remedy: `set it at the top of ${file}: the keepers read it there`,
			});
		}
		merged = merge(merged, table ?? {});
	}
	const config = freeze(v.parse(ConfigSchema, merged));
	const conflict = findConflict(config);
	if (conflict !== undefined)
		throw new ShimError("config.invalid", `${file} and its drop-ins: ${conflict.text}`, { remedy: conflict.remedy });
	return config;
}

/** Checks one file's text. @throws ShimError `config.invalid` */
export function checkConfigText(file: string, toml: string): Record<string, unknown> {
	let table: Table;
	try {
		table = parse(toml, { maxDepth: 16 });
	} catch (error) {
		const place = error instanceof TomlError ? `${file}:${error.line}:${error.column}` : file;
		throw new ShimError("config.invalid", `${place}: ${messageOf(error).split("\n", 1)[0] ?? "not TOML"}`, { cause: undefined });
	}
	const result = v.safeParse(ConfigSchema, table);
	if (result.success) return table;
	const texts = [...new Set(result.issues.map((issue) => describeIssue(file, toml, issue)))];
	const more = texts.length > MAX_ISSUES ? `; and ${texts.length - MAX_ISSUES} more` : "";
	throw new ShimError("config.invalid", `${texts.slice(0, MAX_ISSUES).join("; ")}${more}`);
}

async function readTable(file: string, required: boolean): Promise<Table | undefined> {
	let toml: string;
	try {
		const { size } = await stat(file);
		if (size > MAX_FILE_BYTES)
			throw new ShimError("config.invalid", `${file} has ${size} bytes; a configuration has at most ${MAX_FILE_BYTES}`);
		toml = await readFile(file, "utf8");
	} catch (error) {
		if (error instanceof ShimError) throw error;
		if (!required && errnoOf(error) === "ENOENT") return undefined;
		throw new ShimError("config.unreadable", `reading the configuration ${file} failed`, { cause: error });
	}
	return checkConfigText(file, toml);
}

/** The files that are read after `file`, in their order. */
export async function dropInsOf(file: string): Promise<string[]> {
	const folder = `${file}.d`;
	let names: string[];
	try {
		names = await readdir(folder);
	} catch (error) {
		if (errnoOf(error) === "ENOENT") return [];
		throw new ShimError("config.unreadable", `listing the drop-ins in ${folder} failed`, { cause: error });
	}
	const dropIns = names.filter((name) => name.endsWith(".toml") && !name.startsWith(".")).toSorted(byCodeUnits);
	if (dropIns.length > MAX_DROP_INS)
		throw new ShimError("config.invalid", `${folder} has ${dropIns.length} drop-ins; at most ${MAX_DROP_INS} are read`);
	return dropIns.map((name) => join(folder, name));
}

function byCodeUnits(one: string, other: string): number {
	return one < other ? -1 : one > other ? 1 : 0;
}

/** Both tables in one, the second's values first; tables are merged, everything else is replaced. The inputs stay as they are. */
function merge(base: Table, over: Table): Table {
	const result: Table = { ...base };
	for (const [key, value] of Object.entries(over)) {
		const before = result[key];
		result[key] = isTable(before) && isTable(value) ? merge(before, value) : value;
	}
	return result;
}

function isTable(value: unknown): value is Table {
	return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Date);
}

type Issue = v.InferIssue<typeof ConfigSchema>;

function describeIssue(file: string, toml: string, issue: Issue): string {
	const path = (issue.path ?? []).map((item) => String(item.key));
	const line = lineOfKey(toml, path);
	const place = line === undefined ? file : `${file}:${line}`;
	const key = path.join(".");
	const known = findKey(path);
	if (known !== undefined) return `${place}: ${key} is ${show(issue.input)}, but must be ${known.allowed}`;
	if (describeConfig().some((table) => table.name === key && key !== ""))
		return `${place}: ${key} is ${show(issue.input)}, but must be a table, [${key}]`;
	const isTableName = path.length === 1 && isTable(issue.path?.[0]?.value);
	const tables = describeConfig();
	const keys = tables.flatMap((table) => table.keys.map((each) => each.path.join(".")));
	const names = isTableName ? tables.map((table) => table.name).filter((name) => name !== "") : keys;
	const near = suggest(key, names);
	if (near !== undefined) return `${place}: there is no ${isTableName ? "table" : "key"} ${key}; did you mean ${near}?`;
	const siblings = isTableName ? names : keys.filter((name) => name.split(".").slice(0, -1).join(".") === path.slice(0, -1).join("."));
	return `${place}: there is no ${isTableName ? "table" : "key"} ${key}; there are ${siblings.join(", ")}`;
}

const MAX_SHOWN_CHARACTERS = 80;

/** A value as its TOML text, cut when long. */
function show(value: unknown): string {
	const text = isTable(value) ? "a table" : value instanceof Date ? value.toISOString() : (JSON.stringify(value) ?? String(value));
	return text.length > MAX_SHOWN_CHARACTERS ? `${text.slice(0, MAX_SHOWN_CHARACTERS)}...` : text;
}
