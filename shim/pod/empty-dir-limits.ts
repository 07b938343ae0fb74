/** What a pod's emptyDirs shall hold at most. containerd tells nothing of `sizeLimit`: an annotation of the pod does. */

import { readdir } from "node:fs/promises";
import { join } from "node:path";

import { errnoOf, messageOf, ShimError } from "../base/errors.ts";

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

/** What kubelet mounts into containers lies in the folder of their pod. */
const POD_FOLDER = /^(?<pod>.*\/pods\/[^/]+)\/(?:volumes|volume-subpaths|containers|etc-hosts)(?:\/|$)/u;
const EMPTY_DIRS = "volumes/kubernetes.io~empty-dir";

/**
 * Checks that the pod has the emptyDirs that limits are for: kubelet makes all of a pod's volumes before its first container. Nothing is checked where no
 * mount leads to the pod's folder.
 * @param sources of a container's mounts
 * @throws ShimError `spec.invalid` that names what is wrong and what there is; `volume.copy` for a folder that can't be read
 */
export async function requireEmptyDirs(limits: ReadonlyMap<string, number>, sources: readonly string[]): Promise<void> {
	if (limits.size === 0) return;
	const folders = new Set(sources.flatMap((source) => POD_FOLDER.exec(source)?.groups?.["pod"] ?? []));
	if (folders.size === 0) return;
	const found = (await Promise.all([...folders].map((folder) => namesIn(join(folder, EMPTY_DIRS))))).flat();
	const astray = [...limits.keys()].filter((name) => !found.includes(name));
	if (astray.length === 0) return;
	const there = found.length === 0 ? "it has none" : `it has ${found.sort().join(", ")}`;
	throw new ShimError("spec.invalid", `annotation ${EMPTY_DIR_LIMITS_ANNOTATION}: the pod has no emptyDir ${astray.join(", ")}; ${there}`, {
		remedy: "name the pod's emptyDir volumes as they are written under spec.volumes",
	});
}

async function namesIn(folder: string): Promise<string[]> {
	try {
		return await readdir(folder);
	} catch (error) {
		if (errnoOf(error) === "ENOENT") return [];
		throw new ShimError("volume.copy", `the pod's emptyDirs in ${folder} can't be listed: ${messageOf(error)}`, { cause: error });
	}
}
