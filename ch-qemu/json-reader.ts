/**
 * A JSON reader that knows where each value ends.
 *
 * The VMM's messages name the line and column at which a body was refused, so `JSON.parse` is not enough. The texts of syntax errors are those of
 * serde_json, which the real VMM reads bodies with.
 */

/** A value with the offset of its first character and the offset just behind its last one. */
export type JsonNode =
	| { readonly kind: "null"; readonly start: number; readonly end: number }
	| { readonly kind: "boolean"; readonly value: boolean; readonly start: number; readonly end: number }
	| { readonly kind: "number"; readonly text: string; readonly start: number; readonly end: number }
	| { readonly kind: "string"; readonly value: string; readonly start: number; readonly end: number }
	| { readonly kind: "array"; readonly items: readonly JsonNode[]; readonly start: number; readonly end: number }
	| { readonly kind: "object"; readonly members: readonly JsonMember[]; readonly start: number; readonly end: number };

export type JsonMember = { readonly key: string; readonly value: JsonNode };

/** A body that is no JSON, or not the JSON that was asked for. `message` ends with `at line L column C`. */
export class JsonError extends Error {
	constructor(text: string, message: string, offset: number) {
		const before = text.slice(0, offset);
		const line = before.split("\n").length;
		const column = offset - (before.lastIndexOf("\n") + 1);
		super(`${message} at line ${line} column ${column}`);
		this.name = "JsonError";
	}
}

const DEPTH_MAX = 128;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const SPACE = /[ \t\n\r]*/y;
const STRING = /"(?:[^"\\\u0000-\u001f]|\\.)*"/y;

/** Reads one JSON text. Throws {@link JsonError}. */
export function readJson(text: string): JsonNode {
	let at = 0;

	const fail = (message: string, offset = Math.min(at + 1, text.length)): never => {
		throw new JsonError(text, message, offset);
	};
	const match = (pattern: RegExp): string => {
		pattern.lastIndex = at;
		const found = pattern.exec(text)?.[0] ?? "";
		at += found.length;
		return found;
	};
	const peek = (): string => {
		match(SPACE);
		return text.charAt(at);
	};
	const word = (letters: string): void => {
		if (!text.startsWith(letters, at)) fail("expected ident");
		at += letters.length;
	};

	const readString = (): string => {
		const raw = match(STRING);
		if (raw === "") fail("EOF while parsing a string", text.length);
		try {
			return JSON.parse(raw) as string;
		} catch {
			return fail("invalid escape", at);
		}
	};

	const readArray = (start: number, depth: number): JsonNode => {
		const items: JsonNode[] = [];
		at++;
		if (peek() !== "]") {
			for (;;) {
				items.push(readValue(depth));
				const next = peek();
				if (next === "]") break;
				if (next === "") fail("EOF while parsing a list", text.length);
				if (next !== ",") fail("expected `,` or `]`");
				at++;
			}
		}
		at++;
		return { kind: "array", items, start, end: at };
	};

	const readObject = (start: number, depth: number): JsonNode => {
		const members: JsonMember[] = [];
		at++;
		let next = peek();
		while (next !== "}") {
			if (next === "") fail("EOF while parsing an object", text.length);
			if (next !== '"') fail("key must be a string");
			const key = readString();
			if (peek() !== ":") fail(text.charAt(at) === "" ? "EOF while parsing an object" : "expected `:`");
			at++;
			members.push({ key, value: readValue(depth) });
			next = peek();
			if (next === ",") {
				at++;
				next = peek();
				if (next === "}") fail("trailing comma");
			} else if (next !== "}" && next !== "") fail("expected `,` or `}`");
		}
		at++;
		return { kind: "object", members, start, end: at };
	};

	function readValue(depth: number): JsonNode {
		if (depth > DEPTH_MAX) fail("recursion limit exceeded");
		const first = peek();
		const start = at;
		if (first === "") return fail("EOF while parsing a value", text.length);
		if (first === "{") return readObject(start, depth + 1);
		if (first === "[") return readArray(start, depth + 1);
		if (first === '"') return { kind: "string", value: readString(), start, end: at };
		if (first === "n") return (word("null"), { kind: "null", start, end: at });
		if (first === "t") return (word("true"), { kind: "boolean", value: true, start, end: at });
		if (first === "f") return (word("false"), { kind: "boolean", value: false, start, end: at });
		const number = match(NUMBER);
		if (number === "") return fail("expected value");
		return { kind: "number", text: number, start, end: at };
	}

	const node = readValue(0);
	if (peek() !== "") fail("trailing characters");
	return node;
}
