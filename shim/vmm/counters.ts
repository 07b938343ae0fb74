/** `vm.counters` holds 2^64-1 where nothing was measured, which JSON.parse would round. */

import type { VmCounters } from "./api-types.ts";

/** A text, or a whole number outside of any text. */
const TEXT_OR_NUMBER = /"(?:[^"\\]|\\.)*"|-?[0-9]+/g;

/**
 * Parses the answer of `vm.counters` without loss.
 * @throws SyntaxError when it is not an object of objects of whole numbers
 */
export function parseCounters(text: string): VmCounters {
	const quoted = text.replace(TEXT_OR_NUMBER, (token) => (token.startsWith('"') ? token : `"${token}"`));
	const devices: Record<string, Record<string, bigint>> = {};
	for (const [device, counters] of Object.entries(asObject(JSON.parse(quoted)))) {
		const values: Record<string, bigint> = {};
		for (const [name, value] of Object.entries(asObject(counters))) {
			if (typeof value !== "string") throw new SyntaxError(`the counter ${device}.${name} is not a number`);
			values[name] = BigInt(value);
		}
		devices[device] = values;
	}
	return devices;
}

function asObject(value: unknown): object {
	if (typeof value !== "object" || value === null || Array.isArray(value)) throw new SyntaxError("not an object of counters");
	return value;
}
