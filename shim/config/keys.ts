/** Kinds of configuration keys: each makes a valibot schema that carries its documentation, so that checks, texts and types can't drift apart. */

import * as v from "valibot";

/** What the documentation says about a key, and what an error says is allowed. */
export interface KeyFacts {
	/** One or two sentences for operators. */
	readonly doc: string;
	/** `an integer from 1 to 4 (milliseconds)` */
	readonly allowed: string;
}

const MAX_PATH_BYTES = 4095;
const MAX_TEXT_CHARACTERS = 1024;

const facts = (doc: string, allowed: string): KeyFacts => ({ doc, allowed });
const isAbsolute = (path: string): boolean => path.startsWith("/") && !path.includes("\0");
const bytesOf = (text: string): number => Buffer.byteLength(text);

/** A whole number with bounds, both included. */
export function integer(fallback: number, range: { readonly min: number; readonly max: number; readonly unit?: string }, doc: string) {
	const unit = range.unit === undefined ? "" : ` (${range.unit})`;
	const allowed = `an integer from ${range.min} to ${range.max}${unit}`;
	return v.optional(
		v.pipe(v.number(), v.integer(), v.minValue(range.min), v.maxValue(range.max), v.metadata({ ...facts(doc, allowed) })),
		fallback,
	);
}

/** A time in milliseconds; at most a day. */
export function milliseconds(fallback: number, min: number, doc: string) {
	return integer(fallback, { min, max: 86_400_000, unit: "milliseconds" }, doc);
}

/** true or false. */
export function flag(fallback: boolean, doc: string) {
	return v.optional(v.pipe(v.boolean(), v.metadata({ ...facts(doc, "true or false") })), fallback);
}

/** One of a few words. */
export function choice<const Words extends readonly [string, ...string[]]>(fallback: Words[number], words: Words, doc: string) {
	const allowed = words.map((word) => JSON.stringify(word)).join(", ");
	return v.optional(v.pipe(v.picklist(words), v.metadata({ ...facts(doc, `one of ${allowed}`) })), fallback);
}

/** An absolute path. */
export function path(fallback: string, doc: string, maxBytes: number = MAX_PATH_BYTES) {
	const allowed = maxBytes === MAX_PATH_BYTES ? "an absolute path" : `an absolute path of at most ${maxBytes} bytes`;
	return v.optional(
		v.pipe(
			v.string(),
			v.check(isAbsolute),
			v.check((text) => bytesOf(text) <= maxBytes),
			v.metadata({ ...facts(doc, allowed) }),
		),
		fallback,
	);
}

/** A program: an absolute path, or a name that is looked up on PATH. */
export function program(fallback: string, doc: string) {
	const acceptable = (text: string): boolean => isAbsolute(text) || /^[^/\s\0]+$/.test(text);
	return v.optional(
		v.pipe(
			v.string(),
			v.maxLength(MAX_PATH_BYTES),
			v.check(acceptable),
			v.metadata({ ...facts(doc, "an absolute path, or a name on PATH") }),
		),
		fallback,
	);
}

/** One line of printable text, possibly empty. */
export function line(fallback: string, doc: string) {
	const allowed = `one line of at most ${MAX_TEXT_CHARACTERS} printable ASCII characters`;
	return v.optional(
		v.pipe(v.string(), v.maxLength(MAX_TEXT_CHARACTERS), v.regex(/^[\x20-\x7e]*$/), v.metadata({ ...facts(doc, allowed) })),
		fallback,
	);
}
