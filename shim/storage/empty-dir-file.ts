/** The file behind an emptyDir's disk, in kubelet's folder for the volume: what is allocated of it is what kubelet counts as the volume's use. */

import { readdir, realpath } from "node:fs/promises";
import { dirname, join } from "node:path";

import { messageOf, ShimError } from "../base/errors.ts";
import { makeScratchFile, removeScratchFile } from "./scratch-file.ts";

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
		throw new ShimError("volume.missing", `the emptyDir ${folder} can't be used: ${messageOf(error)}`, { cause: error });
	}
}

/**
 * Makes the file anew. Those that the volume has from earlier sandboxes of its pod go: nobody has their keys any more.
 * @param limitBytes what the volume shall hold; undefined: as much as the file may have
 * @param maxBytes the file's size at most
 * @throws ShimError `storage.scratch`, `storage.full`
 */
export async function makeEmptyDirFile(file: string, limitBytes: number | undefined, maxBytes: number): Promise<void> {
	const folder = dirname(file);
	for (const name of await readdir(folder)) if (NAME.test(name)) await removeScratchFile(join(folder, name));
	await makeScratchFile(file, limitBytes === undefined ? maxBytes : Math.min(diskBytes(limitBytes), maxBytes));
}

/** How large a disk must be to hold so much; a little more fits, as well. */
export function diskBytes(limitBytes: number): number {
	return Math.max(MIN_BYTES, limitBytes + TREES_MIN_BYTES + Math.min(limitBytes * TREES_PART, TREES_MAX_BYTES));
}
