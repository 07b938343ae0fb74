/** Which images a generated policy holds its containers to. */

import * as v from "valibot";

import { dataText } from "./generate.ts";

const dataSchema = v.object({
	containers: v.array(v.object({ name: v.string(), layers: v.array(v.object({ root_hash: v.string() })) })),
});

/**
 * The dm-verity root hashes by container, topmost layer first.
 * @returns undefined for a policy whose rules are not those that this release generates: data alone hold nothing
 */
export function layersOf(policy: string): { readonly container: string; readonly rootHashes: readonly string[] }[] | undefined {
	const json = dataText(policy);
	if (json === undefined) return undefined;
	const checked = v.safeParse(dataSchema, parsed(json));
	if (!checked.success) return undefined;
	return checked.output.containers.map(({ name, layers }) => ({ container: name, rootHashes: layers.map(({ root_hash }) => root_hash) }));
}

function parsed(json: string): unknown {
	try {
		return JSON.parse(json);
	} catch {
		return undefined;
	}
}
