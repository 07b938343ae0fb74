/** Which images a generated policy holds its containers to. Pure. */

import * as v from "valibot";

const dataSchema = v.object({
	containers: v.array(v.object({ name: v.string(), layers: v.array(v.object({ root_hash: v.string() })) })),
});

/** Where a generated policy has its data (the last of its text, as JSON). */
const DATA = /^policy_data := (\{[\s\S]*\})\s*$/mu;

/**
 * The dm-verity root hashes by container, topmost layer first.
 * @returns undefined for a policy that was not generated
 */
export function layersOf(policy: string): { readonly container: string; readonly rootHashes: readonly string[] }[] | undefined {
	const json = DATA.exec(policy)?.[1];
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
