/** What a pod's emptyDirs shall hold at most. containerd tells nothing of `sizeLimit`: an annotation of the pod does. */

import { ShimError } from "../base/errors.ts";

/** `NAME=SIZE` for each volume, separated by commas; the size as Kubernetes writes it. */
export const EMPTY_DIR_LIMITS_ANNOTATION = "io.containerd.snp.empty-dir-limits";

const UNITS: ReadonlyMap<string, number> = new Map([
	["", 1],
	["k", 1e3],
	["M", 1e6],
	["G", 1e9],
	["T", 1e12],
	["Ki", 2 ** 10],
	["Mi", 2 ** 20],
	["Gi", 2 ** 30],
	["Ti", 2 ** 40],
]);
const LIMIT = /^(?<name>[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)=(?<count>[0-9]{1,15}(?:\.[0-9]{1,9})?)(?<unit>[A-Za-z]*)$/u;

/**
 * Reads the limits, in bytes by the volumes' names.
 * @param annotations those of the pod, as containerd passes them on
 * @throws ShimError `spec.invalid`
 */
export function emptyDirLimits(annotations: Readonly<Record<string, string>>): ReadonlyMap<string, number> {
	const text = annotations[EMPTY_DIR_LIMITS_ANNOTATION]?.trim() ?? "";
	const limits = new Map<string, number>();
	for (const part of text === "" ? [] : text.split(",")) {
		const { name, count, unit } = LIMIT.exec(part.trim())?.groups ?? {};
		const factor = UNITS.get(unit ?? "?");
		if (name === undefined || factor === undefined || !(Number(count) > 0)) throw wrong(part, "is no limit of an emptyDir");
		if (limits.has(name)) throw wrong(part, "is the second limit of one emptyDir");
		limits.set(name, Math.ceil(Number(count) * factor));
	}
	return limits;
}

function wrong(part: string, why: string): ShimError {
	return new ShimError("spec.invalid", `annotation ${EMPTY_DIR_LIMITS_ANNOTATION}: ${JSON.stringify(part.trim())} ${why}`, {
		remedy: "write NAME=SIZE once for each volume, separated by commas, for example cache=64Mi,work=1Gi",
	});
}
