/** mount(2) and umount2(2), off the main thread. */

import { addon, checked, plain, whole } from "./load.ts";

/** The flags of mount(2), from the kernel's `linux/mount.h`. */
export const MS = {
	RDONLY: 0x1,
	NOSUID: 0x2,
	NODEV: 0x4,
	NOEXEC: 0x8,
	SYNCHRONOUS: 0x10,
	REMOUNT: 0x20,
	MANDLOCK: 0x40,
	DIRSYNC: 0x80,
	NOATIME: 0x400,
	NODIRATIME: 0x800,
	BIND: 0x1000,
	MOVE: 0x2000,
	REC: 0x4000,
	UNBINDABLE: 0x20000,
	PRIVATE: 0x40000,
	SLAVE: 0x80000,
	SHARED: 0x100000,
	RELATIME: 0x200000,
	STRICTATIME: 0x1000000,
	LAZYTIME: 0x2000000,
} as const;

/** The flags of umount2(2). */
export const MNT = { FORCE: 0x1, DETACH: 0x2, EXPIRE: 0x4, NOFOLLOW: 0x8 } as const;

/** mount(2) takes one page, its NUL included. */
const MAX_DATA_BYTES = 4095;
const MAX_FLAGS = 0xffff_ffff;

/**
 * Mounts.
 * @param flags `MS`, added up
 * @param data options of the file system, separated by commas, at most 4095 bytes
 * @throws SystemError: EINVAL, ENODEV (no such file system in the kernel), EPERM...; RangeError when data is too long
 */
export async function mount(source: string, target: string, type: string, flags: number, data: string): Promise<void> {
	whole(Buffer.byteLength(plain(data, "data")), "the length of the mount's options in bytes", 0, MAX_DATA_BYTES);
	const result = addon().mount(
		plain(source, "source"),
		plain(target, "target"),
		plain(type, "type"),
		whole(flags, "flags", 0, MAX_FLAGS),
		data,
	);
	checked(await result, "mount", `${type} ${source} at ${target}`);
}

/**
 * Unmounts.
 * @param flags `MNT`, added up
 * @throws SystemError: EBUSY, EINVAL when nothing is mounted there...
 */
export async function unmount(target: string, flags: number): Promise<void> {
	checked(await addon().unmount(plain(target, "target"), whole(flags, "flags", 0, 0xf)), "umount", target);
}
