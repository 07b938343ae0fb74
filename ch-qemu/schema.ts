/**
 * Bodies by table: field names, types and defaults of a structure are data, and one function checks a body against them.
 *
 * It follows what the real VMM's deserialiser does: unknown fields are dropped silently, a missing optional field takes its default, `null` stands for
 * "not given", and the messages for everything else are serde's.
 */
import { JsonError, type JsonNode, readJson } from "./json-reader.ts";

/** What a field may hold. Integers are safe numbers: the sizes that the API carries fit 53 bits. */
export type Kind =
	| { readonly is: "string" | "boolean" | "mac" | "descriptor" | "any" }
	| { readonly is: "integer"; readonly name: string; readonly max: number; readonly min: number }
	| { readonly is: "enum"; readonly values: readonly string[] }
	| { readonly is: "array"; readonly of: Kind }
	| { readonly is: "struct"; readonly struct: Struct };

/** A field: optional without a default unless said otherwise. `hideFalse` leaves a false out of the result, as `iommu` does. */
export type Field = {
	readonly name: string;
	readonly kind: Kind;
	readonly required?: boolean;
	readonly default?: unknown;
	readonly alias?: string;
	readonly hideFalse?: boolean;
};

/** A structure: its fields in the order in which `vm.info` shows them. */
export type Struct = { readonly name: string; readonly fields: readonly Field[] };

export const STRING: Kind = { is: "string" };
export const BOOLEAN: Kind = { is: "boolean" };
export const MAC: Kind = { is: "mac" };
export const ANY: Kind = { is: "any" };
export const DESCRIPTOR: Kind = { is: "descriptor" };
export const U8: Kind = { is: "integer", name: "u8", min: 0, max: 255 };
export const U16: Kind = { is: "integer", name: "u16", min: 0, max: 65535 };
export const U32: Kind = { is: "integer", name: "u32", min: 0, max: 4294967295 };
export const U64: Kind = { is: "integer", name: "u64", min: 0, max: 2 ** 64 };
export const USIZE: Kind = { is: "integer", name: "usize", min: 0, max: 2 ** 64 };
export const arrayOf = (of: Kind): Kind => ({ is: "array", of });
export const enumOf = (...values: string[]): Kind => ({ is: "enum", values });
export const structOf = (struct: Struct): Kind => ({ is: "struct", struct });

/** Reads a body as the structure `struct`. Throws `JsonError` with serde's message. The caller names the type that the table describes. */
export function decode<T>(struct: Struct, text: string): T {
	return decodeStruct(struct, readJson(text), text) as T;
}

/** The structure that an empty body gives: every default, no required field. */
export function defaultsOf(struct: Struct): Record<string, unknown> {
	const result: Record<string, unknown> = {};
	for (const field of struct.fields)
		if (field.default !== undefined && !field.hideFalse) result[field.name] = structuredClone(field.default);
	return result;
}

function decodeStruct(struct: Struct, node: JsonNode, text: string): Record<string, unknown> {
	if (node.kind !== "object") throw wrongType(node, `struct ${struct.name}`, text);
	const given = new Map<string, JsonNode>();
	for (const { key, value } of node.members) {
		const field = struct.fields.find((f) => f.name === key || f.alias === key);
		if (field === undefined) continue;
		if (given.has(field.name)) throw new JsonError(text, `duplicate field \`${field.name}\``, value.end);
		given.set(field.name, value);
	}
	const result: Record<string, unknown> = {};
	for (const field of struct.fields) {
		const value = given.get(field.name);
		if (value === undefined) {
			if (field.required) throw new JsonError(text, `missing field \`${field.name}\``, node.end);
			if (field.default !== undefined && !field.hideFalse) result[field.name] = structuredClone(field.default);
			continue;
		}
		const optional = !field.required && field.default === undefined;
		if (value.kind === "null" && optional) continue;
		const decoded = decodeKind(field.kind, value, text);
		if (!(field.hideFalse && decoded === false)) result[field.name] = decoded;
	}
	return result;
}

function decodeKind(kind: Kind, node: JsonNode, text: string): unknown {
	switch (kind.is) {
		case "string":
			if (node.kind !== "string") throw wrongType(node, "a string", text);
			return node.value;
		case "boolean":
			if (node.kind !== "boolean") throw wrongType(node, "a boolean", text);
			return node.value;
		case "integer":
			return decodeInteger(kind, node, text);
		case "descriptor":
			// Descriptor numbers of another process mean nothing here: the real VMM stores -1 for each.
			return node.kind === "number" ? -1 : decodeKind({ ...U32, name: "i32" } as Kind, node, text);
		case "mac":
			return decodeMac(node, text);
		case "enum":
			return decodeEnum(kind.values, node, text);
		case "array":
			if (node.kind !== "array") throw wrongType(node, "a sequence", text);
			return node.items.map((item) => decodeKind(kind.of, item, text));
		case "struct":
			return decodeStruct(kind.struct, node, text);
		case "any":
			return JSON.parse(text.slice(node.start, node.end));
	}
}

function decodeInteger(kind: Kind & { is: "integer" }, node: JsonNode, text: string): number {
	if (node.kind !== "number" || /[.eE]/.test(node.text)) throw wrongType(node, kind.name, text);
	const value = Number(node.text);
	if (value < kind.min || value > kind.max) {
		throw new JsonError(text, `invalid value: integer \`${node.text}\`, expected ${kind.name}`, node.end);
	}
	return value;
}

function decodeMac(node: JsonNode, text: string): string {
	if (node.kind !== "string") throw wrongType(node, "a string", text);
	if (/^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$/.test(node.value)) return node.value.toLowerCase();
	// serde places an error of a field's own parser behind the brace when the object ends there.
	const rest = /^\s*}/.exec(text.slice(node.end))?.[0].length ?? 0;
	const message = `The provided MAC address is invalid: parsing of ${node.value} into a MAC address failed`;
	throw new JsonError(text, message, node.end + rest);
}

function decodeEnum(values: readonly string[], node: JsonNode, text: string): string {
	if (node.kind !== "string") throw wrongType(node, "string or map", text);
	if (values.includes(node.value)) return node.value;
	const names = values.map((v) => `\`${v}\``);
	const expected = names.length === 2 ? `${names[0]} or ${names[1]}` : `one of ${names.join(", ")}`;
	throw new JsonError(text, `unknown variant \`${node.value}\`, expected ${expected}`, node.end);
}

function wrongType(node: JsonNode, expected: string, text: string): JsonError {
	const open = node.kind === "array" || node.kind === "object";
	return new JsonError(text, `invalid type: ${describe(node)}, expected ${expected}`, open ? node.start + 1 : node.end);
}

function describe(node: JsonNode): string {
	switch (node.kind) {
		case "null":
			return "null";
		case "boolean":
			return `boolean \`${node.value}\``;
		case "number":
			return /[.eE]/.test(node.text) ? `floating point \`${node.text}\`` : `integer \`${node.text}\``;
		case "string":
			return `string ${JSON.stringify(node.value)}`;
		case "array":
			return "sequence";
		case "object":
			return "map";
	}
}
