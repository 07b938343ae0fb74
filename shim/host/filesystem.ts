/** File systems of the host: free space, folders, and FIFOs. */

import { access, constants, mkdir, stat, statfs, unlink } from "node:fs/promises";
import { dirname } from "node:path";

import { errnoOf } from "../base/errors.ts";

export { makeFifo } from "../../native/src/file.ts";

const FOLDER_MODE = 0o700;
/** File systems that may have no blocks and hold files nevertheless: tmpfs without a size, and ramfs (statfs(2)). */
const IN_MEMORY: ReadonlySet<number> = new Set([0x01021994, 0x858458f6]);

/** Space of a file system in bytes; `freeBytes` is what an unprivileged process may still use. */
export interface Space {
	readonly totalBytes: number;
	readonly freeBytes: number;
}

/** The space of the file system that holds `path` (statfs(2)). */
export async function spaceAt(path: string): Promise<Space> {
	const stats = await statfs(path);
	return { totalBytes: stats.blocks * stats.bsize, freeBytes: stats.bavail * stats.bsize };
}

/**
 * Makes a folder and those above it that are missing, for its owner alone. It must lie in a file system that holds files: not in /proc, in
 * the cgroups or their like, where Node's own recursive mkdir tries again for ever.
 * @param path absolute
 * @throws Error that names the folder which can't be used; SystemError: ENOSPC, EROFS, EACCES, ENOTDIR
 */
export async function makeFolder(path: string): Promise<void> {
	const missing: string[] = [];
	let base = path;
	while (!(await isThere(base))) {
		missing.unshift(base);
		base = dirname(base);
	}
	if (missing.length > 0) await requireRoom(base);
	for (const folder of missing) {
		await mkdir(folder, { mode: FOLDER_MODE }).catch((error: unknown) => {
			if (errnoOf(error) !== "EEXIST") throw error;
		});
	}
	if (!(await stat(path)).isDirectory()) throw new Error(`${path} is not a folder`);
}

/** Removes a file's name, in one turn where Node's own `rm` takes two. One that is not there is no error. */
export async function removeFile(path: string): Promise<void> {
	try {
		await unlink(path);
	} catch (error) {
		if (errnoOf(error) !== "ENOENT") throw error;
	}
}

/** What tells a file from all others, under whatever name: device and inode (inode(7)). A file that somebody has open keeps its own. */
export async function fileIdentity(path: string): Promise<string> {
	const { dev, ino } = await stat(path, { bigint: true });
	return `${dev}:${ino}`;
}

/**
 * What tells a file also from those that had its inode before or have it after: device, inode, birth, and size (statx(2)). It is the same under another name,
 * and whenever the file was used.
 */
export async function fileOrigin(path: string): Promise<string> {
	const { dev, ino, birthtimeNs, size } = await stat(path, { bigint: true });
	return `${dev}:${ino}:${birthtimeNs}:${size}`;
}

/** What changes when a file is written anew or replaced: device, inode, size, and the time of its last change (inode(7)). */
export async function fileStamp(path: string): Promise<string> {
	const { dev, ino, size, mtimeNs } = await stat(path, { bigint: true });
	return `${dev}:${ino}:${size}:${mtimeNs}`;
}

async function isThere(path: string): Promise<boolean> {
	try {
		await stat(path);
		return true;
	} catch (error) {
		if (errnoOf(error) === "ENOENT" && dirname(path) !== path) return false;
		throw error;
	}
}

async function requireRoom(folder: string): Promise<void> {
	await access(folder, constants.W_OK);
	const { blocks, type } = await statfs(folder);
	if (blocks === 0 && !IN_MEMORY.has(type)) throw new Error(`${folder} belongs to a file system of the kernel, which holds no files`);
}
