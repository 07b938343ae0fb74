/** Texts that are known in part: literal pieces, and patterns for what only the run tells. */

import { escapePattern, wholly } from "./policy-data.ts";
import type { Expected } from "./policy-data.ts";

/** A piece: a text, or a pattern of one with an example. */
export type Piece = string | { readonly like: string; readonly sample: string };

/** A pattern of any text. */
export const ANY_TEXT = "(?s:.*)";

/** A text of pieces. */
export type Template = readonly Piece[];

/** What becomes of a text: what a policy expects of it, or an example of it. */
export type Settle = (template: Template, optional?: boolean) => Expected;

/** True when some of it may be anything. */
export function isFree(template: Template): boolean {
	return template.some((piece) => typeof piece !== "string" && piece.like === ANY_TEXT);
}

/** An example of a text. */
export function sampleOf(template: Template): string {
	return template.map((piece) => (typeof piece === "string" ? piece : piece.sample)).join("");
}

/** The expected value of a text. @param optional it may be missing */
export function expectedOf(template: Template, optional = false): Expected {
	if (template.every((piece) => typeof piece === "string") && !optional) return template.join("");
	return wholly(template.map((piece) => (typeof piece === "string" ? escapePattern(piece) : `(?:${piece.like})`)).join(""), optional);
}

/**
 * Replaces `$(NAME)` by a variable's value and `$$` by `$`, as Kubernetes does in commands, arguments and variables (Kubernetes API reference,
 * Container.command): a name that is not known stays as it is.
 */
export function expand(text: string, valueOf: (name: string) => Template | undefined): Template {
	const pieces: Piece[] = [];
	let [rest, literal] = [text, ""];
	while (rest !== "") {
		const found = /^\$\((?<name>[^)]*)\)/u.exec(rest);
		if (rest.startsWith("$$")) {
			literal += "$";
			rest = rest.slice(2);
		} else if (found !== null) {
			const value = valueOf(found.groups?.["name"] ?? "");
			if (value === undefined) literal += found[0];
			else {
				pieces.push(literal, ...value);
				literal = "";
			}
			rest = rest.slice(found[0].length);
		} else {
			literal += rest[0] ?? "";
			rest = rest.slice(1);
		}
	}
	return [...pieces, literal].filter((piece) => piece !== "");
}
