/** Network namespaces of the host, by path: which one a path means, and visits to it. */

import { closeSync, constants, fstatSync, openSync, statSync } from "node:fs";

import { netnsNetlink } from "../../native/src/netns.ts";
import { receive } from "../../native/src/receive.ts";
import { closeFd } from "../../native/src/file.ts";

/** The namespace of this process. */
const OWN = "/proc/self/ns/net";
/** Announcements of links, addresses and routes of both families (RTMGRP_* of linux/rtnetlink.h). */
const GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/** A network namespace that is held open. It exists at least as long as it is. */
export interface HeldNamespace {
	readonly fd: number;
	/** Tells namespaces apart while they exist: device and inode. */
	readonly id: string;
	/** True for the namespace of this process. */
	readonly own: boolean;
	close(): void;
}

const identity = (stats: { readonly dev: bigint; readonly ino: bigint }): string => `${stats.dev}:${stats.ino}`;

/**
 * Opens the namespace at a path: a bind mount of one below /run/netns, or a file below /proc/<pid>/ns.
 * @throws the operating system's error: ENOENT, EACCES...
 */
export function holdNamespace(path: string): HeldNamespace {
	const fd = openSync(path, constants.O_RDONLY);
	try {
		const id = identity(fstatSync(fd, { bigint: true }));
		return { fd, id, own: id === identity(statSync(OWN, { bigint: true })), close: () => closeSync(fd) };
	} catch (error) {
		closeSync(fd);
		throw error;
	}
}

/**
 * Calls back when a link, an address or a route of the namespace changes, or when such news was lost: what has changed must be read. Does not keep the
 * program alive.
 * @returns how to end it
 * @throws SystemError
 */
export async function watchNamespace(ns: number, onChange: () => void): Promise<() => void> {
	const fd = await netnsNetlink(ns, GROUPS);
	try {
		const stop = receive(fd, onChange);
		return stop;
	} finally {
		// The receiver has its own copy.
		closeFd(fd);
	}
}
