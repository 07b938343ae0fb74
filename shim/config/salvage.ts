/** A configuration that was written down by another version, or by this one earlier. */

import * as v from "valibot";

import { ConfigSchema, defaultConfig, freeze } from "./schema.ts";
import type { Config } from "./schema.ts";

/** More keys than there ever were. */
const MAX_REMOVALS = 1024;

/** Takes whatever of it holds today; what this version does not know, or does not allow, gets its default. Never fails. */
export function salvageConfig(written: unknown): Config {
	const rest: unknown = structuredClone(written);
	for (let removals = 0; removals < MAX_REMOVALS; removals++) {
		const result = v.safeParse(ConfigSchema, rest);
		if (result.success) return freeze(result.output);
		if (
			!removeAt(
				rest,
				(result.issues[0].path ?? []).map(({ key }) => String(key)),
			)
		)
			break;
	}
	return defaultConfig();
}

/** Removes the value at a path. @returns false when there is none */
function removeAt(value: unknown, path: readonly string[]): boolean {
	const [key, ...below] = path;
	if (key === undefined || typeof value !== "object" || value === null) return false;
	if (below.length > 0) return removeAt(Reflect.get(value, key), below);
	return Object.hasOwn(value, key) && Reflect.deleteProperty(value, key);
}
