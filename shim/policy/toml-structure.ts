/** How much of a TOML document is not text: what a parser has to make keys and tables of. Linear, and nothing is built: for documents of strangers, before they are parsed. */

const BACKSLASH = 0x5c;
const QUOTE = 0x22;
const APOSTROPHE = 0x27;
const NUMBER_SIGN = 0x23;
const LINE_FEED = 0x0a;

/**
 * Counts the characters outside of strings and comments (TOML 1.0, "String" and "Comment"). Of a text that is no TOML it counts no less than what stands before
 * the first mistake.
 */
export function structureLength(toml: string): number {
	let length = 0;
	let at = 0;
	while (at < toml.length) {
		const end = endOfText(toml, at);
		if (end === at) {
			length += 1;
			at += 1;
		} else {
			at = end;
		}
	}
	return length;
}

/** Where the string or comment that begins at `at` ends; `at` when none begins. */
function endOfText(toml: string, at: number): number {
	const first = toml.charCodeAt(at);
	if (first === NUMBER_SIGN) return endOr(toml, toml.indexOf("\n", at));
	if (first === APOSTROPHE) {
		if (!toml.startsWith("'''", at)) return endOfLine(toml, at, APOSTROPHE);
		const end = toml.indexOf("'''", at + 3);
		return end === -1 ? toml.length : endOfMarks(toml, end + 3, APOSTROPHE);
	}
	if (first !== QUOTE) return at;
	return toml.startsWith('"""', at) ? endOfLines(toml, at + 3) : endOfLine(toml, at, QUOTE);
}

/** The end of a string of one line; a line that ends first ends it, as a mistake. */
function endOfLine(toml: string, start: number, mark: number): number {
	for (let at = start + 1; at < toml.length; at += 1) {
		const code = toml.charCodeAt(at);
		if (code === mark) return at + 1;
		if (code === LINE_FEED) return at;
		if (code === BACKSLASH && mark === QUOTE) at += 1;
	}
	return toml.length;
}

/** The end of a basic string of several lines whose text begins at `start`. */
function endOfLines(toml: string, start: number): number {
	for (let at = start; at < toml.length; at += 1) {
		if (toml.charCodeAt(at) === BACKSLASH) at += 1;
		else if (toml.startsWith('"""', at)) return endOfMarks(toml, at + 3, QUOTE);
	}
	return toml.length;
}

/** One or two more marks belong to the text: it may end with them. */
function endOfMarks(toml: string, end: number, mark: number): number {
	if (toml.charCodeAt(end) !== mark) return end;
	return toml.charCodeAt(end + 1) === mark ? end + 2 : end + 1;
}

function endOr(toml: string, found: number): number {
	return found === -1 ? toml.length : found;
}
