/** The file behind an emptyDir's disk, in kubelet's folder for the volume: what is allocated of it is what kubelet counts as the volume's use. */

import { readdir, realpath } from "node:fs/promises";
import { dirname, join } from "node:path";

import { errnoOf, messageOf, ShimError } from "../base/errors.ts";
import type { ErrorReason } from "../base/errors.ts";
import { makeSparseFile, removeScratchFile } from "./scratch-file.ts";

const MIB = 1024 * 1024;
/** The smallest disk that the guest takes. */
const MIN_BYTES = 48 * MIB;
/** What a file system needs besides what is written to it: for its own trees up to so much, */
const TREES_MIN_BYTES = 32 * MIB;
const TREES_MAX_BYTES = 512 * MIB;
/** which is a part of its size: a chunk of them is a tenth, and every block has a checksum. */
const TREES_PART = 1 / 8;

const NAME = /^containerd-shim-snp-[0-9a-f]{32}\.img$/u;

/**
 * The file's path; no symbolic link leads there.
 * @param folder kubelet's
 * @param owner the pod's key
 * @throws ShimError `volume.missing`
 */
export async function emptyDirFile(folder: string, owner: string): Promise<string> {
	try {
		return join(await realpath(folder), `containerd-shim-snp-${owner}.img`);
	} catch (error) {
		throw unusable(folder, error, "volume.missing");
	}
}

/**
 * Makes the file anew, and never the folder: kubelet would not get rid of one that it has removed. Those that the volume has from earlier sandboxes of its pod go: nobody has their keys any more.
 * @param limitBytes what the volume shall hold; undefined: as much as the file may have
 * @param maxBytes the file's size at most
 * @throws ShimError `volume.missing`, `storage.scratch`, `storage.full`
 */
export async function makeEmptyDirFile(file: string, limitBytes: number | undefined, maxBytes: number): Promise<void> {
	const folder = dirname(file);
	try {
		for (const name of await readdir(folder)) if (NAME.test(name)) await removeScratchFile(join(folder, name));
		await makeSparseFile(file, limitBytes === undefined ? maxBytes : Math.min(diskBytes(limitBytes), maxBytes));
	} catch (error) {
		throw unusable(folder, error, REASONS.get(errnoOf(error) ?? "") ?? "storage.scratch");
	}
}

const REASONS: ReadonlyMap<string, ErrorReason> = new Map([
	["ENOENT", "volume.missing"],
	["ENOTDIR", "volume.missing"],
	["ENOSPC", "storage.full"],
	["EDQUOT", "storage.full"],
]);

function unusable(folder: string, error: unknown, reason: ErrorReason): ShimError {
	return new ShimError(reason, `the emptyDir ${folder} can't have a file for what the pod writes: ${messageOf(error)}`, {
		cause: error,
		...(reason === "storage.scratch"
			? { remedy: 'see that kubelet\'s folder for the volume takes files, or set storage.scratch = "memory"' }
			: {}),
	});
}

/** How large a disk must be to hold so much; a little more fits, as well. */
export function diskBytes(limitBytes: number): number {
	return Math.max(MIN_BYTES, limitBytes + TREES_MIN_BYTES + Math.min(limitBytes * TREES_PART, TREES_MAX_BYTES));
}
