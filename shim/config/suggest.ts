/** The nearest right word for a misspelt one. */

/**
 * Edits that turn one word into the other: insertions, deletions, replacements, and exchanges of two neighbours.
 * Words are short (keys): the cost is the product of their lengths.
 */
export function editDistance(from: string, to: string): number {
	let beforeLast: number[] = [];
	let last = Array.from({ length: to.length + 1 }, (_, column) => column);
	for (let row = 1; row <= from.length; row++) {
		const current = [row];
		for (let column = 1; column <= to.length; column++) {
			const same = from[row - 1] === to[column - 1];
			let cost = Math.min(at(last, column) + 1, at(current, column - 1) + 1, at(last, column - 1) + (same ? 0 : 1));
			const exchanged = row > 1 && column > 1 && from[row - 1] === to[column - 2] && from[row - 2] === to[column - 1];
			if (exchanged) cost = Math.min(cost, at(beforeLast, column - 2) + 1);
			current.push(cost);
		}
		beforeLast = last;
		last = current;
	}
	return at(last, to.length);
}

function at(row: readonly number[], column: number): number {
	return row[column] ?? Number.POSITIVE_INFINITY;
}

const MAX_WORD = 128;

/** Units at the end of a key. Leaving one out or taking another is the commonest mistake. */
const UNIT = /_(?:ms|s|sec|secs|seconds|mib|mb|gib|gb|percent)$/;

/**
 * The candidate that `word` was probably meant to be: the key of the same last part, units aside, else the fewest edits away.
 * None when nothing is near: more than a third of the letters differ.
 */
export function suggest(word: string, candidates: readonly string[]): string | undefined {
	if (word.length > MAX_WORD) return undefined;
	const leaf = lastPart(word);
	const stem = leaf.replace(UNIT, "");
	const alike = candidates.filter((candidate) => lastPart(candidate).replace(UNIT, "") === stem);
	const likeliest = alike.find((candidate) => sameTable(word, candidate)) ?? alike[0];
	if (likeliest !== undefined) return likeliest;
	let best: string | undefined;
	let bestDistance = Number.POSITIVE_INFINITY;
	for (const candidate of candidates) {
		const distance = Math.min(
			editDistance(word, candidate),
			editDistance(leaf, lastPart(candidate)) + (sameTable(word, candidate) ? 0 : 1),
		);
		if (distance >= bestDistance || distance > Math.max(2, Math.floor(lastPart(candidate).length / 3))) continue;
		best = candidate;
		bestDistance = distance;
	}
	return best;
}

function lastPart(path: string): string {
	return path.slice(path.lastIndexOf(".") + 1);
}

function sameTable(one: string, other: string): boolean {
	return one.slice(0, one.lastIndexOf(".") + 1) === other.slice(0, other.lastIndexOf(".") + 1);
}
