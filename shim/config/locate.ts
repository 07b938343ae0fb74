/** Finds the line of a key in a TOML text, for error messages: the parser keeps no positions. */

const HEADER = /^\s*\[([^[\]]+)\]\s*(?:#.*)?$/;
const ASSIGNMENT = /^\s*([A-Za-z0-9_."'\s-]+?)\s*=/;

/** The line (from 1) where a key or its table stands; undefined when it is written in a way that this does not follow (inline tables). */
export function lineOfKey(toml: string, path: readonly string[]): number | undefined {
	const wanted = path.join(".");
	let table = "";
	let tableLine: number | undefined;
	for (const [index, line] of toml.split("\n").entries()) {
		const header = HEADER.exec(line)?.[1];
		if (header !== undefined) {
			table = normal(header);
			if (table === wanted) tableLine = index + 1;
			continue;
		}
		const key = ASSIGNMENT.exec(line)?.[1];
		if (key === undefined) continue;
		const full = table === "" ? normal(key) : `${table}.${normal(key)}`;
		if (full === wanted) return index + 1;
	}
	return tableLine;
}

function normal(key: string): string {
	return key
		.split(".")
		.map((part) => part.trim().replace(/^(["'])(.*)\1$/, "$2"))
		.join(".");
}
