/** Disks of the node that a VM is given: block devices by their number or path, and plain files that hold an image. */

import { constants } from "node:fs";
import { open, readFile, realpath, stat } from "node:fs/promises";

import { errnoOf } from "../base/errors.ts";

/** A disk of the node. */
export interface HostDisk {
	/** Where it can be opened; no symbolic link. */
	readonly path: string;
	/** The same for every path of one disk: `block 7:3`, or `file PATH`. */
	readonly key: string;
	/** The disk takes no writes. */
	readonly readonly: boolean;
}

/** How many low bits of a device number hold a part of the minor number (Linux, makedev(3)). */
const MINOR_BITS = 8;
const MINOR_MASK = 0xff;
const MAJOR_MASK = 0xfff;
const HIGH_BITS = 12;
const WORD_BITS = 32;

/** Major and minor number of what stat(2) gives as `rdev` (makedev(3)). */
export function deviceNumbers(rdev: number): { readonly major: number; readonly minor: number } {
	// Numbers beyond 32 bits are cut by shifts: they are taken apart by division.
	const high = Math.floor(rdev / 2 ** WORD_BITS);
	const low = rdev % 2 ** WORD_BITS;
	const major = (Math.floor(low / 2 ** MINOR_BITS) & MAJOR_MASK) + Math.floor(high / 2 ** HIGH_BITS) * 2 ** HIGH_BITS;
	const minor = (low & MINOR_MASK) + Math.floor(low / 2 ** (MINOR_BITS + HIGH_BITS)) * 2 ** MINOR_BITS;
	return { major, minor };
}

/** The device file of a block device, by its number. @returns undefined when the node has none (any more) */
export async function diskByNumber(major: number, minor: number): Promise<HostDisk | undefined> {
	try {
		// Linux, Documentation/ABI/stable/sysfs-dev; DEVNAME is the name below /dev.
		const uevent = await readFile(`/sys/dev/block/${major}:${minor}/uevent`, "utf8");
		const name = /^DEVNAME=(.+)$/mu.exec(uevent)?.[1];
		if (name === undefined) return undefined;
		const disk = await diskAt(`/dev/${name}`);
		return disk?.key === blockKey(major, minor) ? disk : undefined;
	} catch (error) {
		if (errnoOf(error) === "ENOENT") return undefined;
		throw error;
	}
}

/**
 * The disk at a path: a block device or a plain file.
 * @returns undefined when there is nothing, or something else
 * @throws SystemError: EACCES, EIO
 */
export async function diskAt(path: string): Promise<HostDisk | undefined> {
	try {
		const real = await realpath(path);
		const stats = await stat(real);
		if (stats.isFile()) return { path: real, key: fileKey(real), readonly: false };
		if (!stats.isBlockDevice()) return undefined;
		const { major, minor } = deviceNumbers(stats.rdev);
		const readonly = (await readFile(`/sys/dev/block/${major}:${minor}/ro`, "utf8")).trim() === "1";
		return { path: real, key: blockKey(major, minor), readonly };
	} catch (error) {
		if (errnoOf(error) === "ENOENT" || errnoOf(error) === "ENOTDIR") return undefined;
		throw error;
	}
}

/** The key of a plain file. @param path without symbolic links */
export const fileKey = (path: string): string => `file ${path}`;

const blockKey = (major: number, minor: number): string => `block ${major}:${minor}`;

/**
 * Whether the node's kernel itself uses a block device: a mounted file system, swap, a part of a volume group. Two kernels that write to one file
 * system destroy it. Always false for plain files.
 */
export async function usedByNode(disk: HostDisk): Promise<boolean> {
	if (!disk.key.startsWith("block ")) return false;
	try {
		// O_EXCL without O_CREAT: refused when the kernel has the device for itself (open(2)).
		const handle = await open(disk.path, constants.O_RDONLY | constants.O_EXCL | constants.O_NONBLOCK);
		await handle.close();
		return false;
	} catch (error) {
		if (errnoOf(error) === "EBUSY") return true;
		throw error;
	}
}
