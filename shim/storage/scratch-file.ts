/** The file of the node behind a pod's writable disk: sparse, for its owner alone, and gone with the VM. */

import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { dirname } from "node:path";

import { errnoOf, messageOf, ShimError } from "../base/errors.ts";
import { makeFolder, removeFile, spaceAt } from "../host/filesystem.ts";

const MODE = 0o600;
/** Disks have whole blocks of this size. */
const BLOCK_BYTES = 4096;
const { O_CREAT, O_EXCL, O_NOFOLLOW, O_WRONLY } = constants;

/**
 * Makes the file, and its folder if there is none. It takes no space until the guest writes.
 * @param maxBytes the disk's size, if the file system is at least as large
 * @throws ShimError `storage.scratch`, `storage.full`
 */
export async function makeScratchFile(path: string, maxBytes: number): Promise<void> {
	try {
		await makeSparseFile(path, maxBytes).catch(async (error: unknown) => {
			if (errnoOf(error) !== "ENOENT") throw error;
			await makeFolder(dirname(path));
			await makeSparseFile(path, maxBytes);
		});
	} catch (error) {
		const reason = errnoOf(error) === "ENOSPC" ? "storage.full" : "storage.scratch";
		throw new ShimError(reason, `the file ${path} for what the pod writes can't be made: ${messageOf(error)}`, {
			remedy: 'set storage.scratch_dir to a folder on a disk of the node, or storage.scratch = "memory"',
			cause: error,
		});
	}
}

/**
 * Makes the file in a folder that is there.
 * @throws SystemError: EEXIST, ENOENT, ENOSPC, EROFS
 */
export async function makeSparseFile(path: string, maxBytes: number): Promise<void> {
	const { totalBytes } = await spaceAt(dirname(path));
	const bytes = totalBytes > 0 ? Math.min(maxBytes, totalBytes) : maxBytes;
	const file = await open(path, O_CREAT | O_EXCL | O_NOFOLLOW | O_WRONLY, MODE);
	try {
		await file.truncate(Math.floor(bytes / BLOCK_BYTES) * BLOCK_BYTES);
	} finally {
		await file.close();
	}
}

/** Removes the file's name; who has it open keeps the file. One that is not there is no error. */
export async function removeScratchFile(path: string): Promise<void> {
	await removeFile(path);
}
