/** Reads the schema back as a list of keys, for documentation and errors. */

import * as v from "valibot";
import type { KeyFacts } from "./keys.ts";
import { ConfigSchema } from "./schema.ts";

/** One key of the configuration. */
export interface KeyDescription extends KeyFacts {
	/** `["guest", "vcpus"]` */
	readonly path: readonly string[];
	readonly fallback: string | number | boolean;
}

/** One table of the configuration; the top of the file has an empty name. */
export interface TableDescription {
	readonly name: string;
	readonly doc: string;
	readonly keys: readonly KeyDescription[];
}

/** Every table with its keys, in the order of the schema, the top first. */
export function describeConfig(): readonly TableDescription[] {
	const top: KeyDescription[] = [];
	const tables: TableDescription[] = [];
	for (const [name, schema] of Object.entries(ConfigSchema.entries)) {
		const { wrapped } = schema;
		if ("entries" in wrapped) {
			const keys = Object.entries(wrapped.entries).map(([key, entry]) => describeKey([name, key], entry as v.GenericSchema));
			tables.push({ name, doc: text(v.getMetadata(wrapped)["doc"]), keys });
		} else {
			top.push(describeKey([name], schema));
		}
	}
	return [{ name: "", doc: "", keys: top }, ...tables];
}

/** The description of one key, or undefined when it is no key. */
export function findKey(path: readonly string[]): KeyDescription | undefined {
	const wanted = path.join(".");
	return describeConfig()
		.flatMap((table) => table.keys)
		.find((key) => key.path.join(".") === wanted);
}

function describeKey(path: readonly string[], schema: v.GenericSchema): KeyDescription {
	if (!("wrapped" in schema)) throw new TypeError(`${path.join(".")} has no default`);
	const metadata = v.getMetadata(schema.wrapped as v.GenericSchema);
	const fallback = v.parse(schema, undefined);
	if (typeof fallback !== "string" && typeof fallback !== "number" && typeof fallback !== "boolean")
		throw new TypeError(`${path.join(".")} has an unknown type`);
	return { path, fallback, doc: text(metadata["doc"]), allowed: text(metadata["allowed"]) };
}

function text(value: unknown): string {
	if (typeof value !== "string" || value === "") throw new TypeError("a configuration key has no documentation");
	return value;
}
