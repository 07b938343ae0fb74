/** Unix stream sockets as bare descriptors. */

import { addon, checked, MAX_INT, plain, whole } from "./load.ts";

/** Most descriptors in one message (SCM_MAX_FD of the kernel); `socket.cc` holds the same bound. */
export const MAX_SENT_FDS = 253;

/**
 * Binds and listens. The descriptor closes on exec (a child gets it through `stdio`).
 * @param mode permission bits of the socket's file, less the umask
 * @param blocking whether accepting from it waits: a descriptor's mode is the child's, too
 * @returns the descriptor: the caller closes it
 * @throws SystemError: EADDRINUSE when the file exists, ENAMETOOLONG above 107 bytes, ENOENT...
 */
export function listenUnix(path: string, backlog: number, mode: number, blocking = false): number {
	return checked(
		addon().listenUnix(plain(path, "path"), whole(backlog, "backlog", 1, 65_535), whole(mode, "mode", 0, 0o777), blocking ? 1 : 0),
		"listen",
		path,
	);
}

/**
 * Connects without waiting.
 * @returns the connected, non-blocking descriptor: the caller closes it
 * @throws SystemError: ECONNREFUSED, ENOENT, EAGAIN when the listener's backlog is full...
 */
export function connectUnix(path: string): number {
	return checked(addon().connectUnix(plain(path, "path")), "connect", path);
}

/**
 * Sends bytes with descriptors attached to the first one (SCM_RIGHTS); the descriptors stay open here.
 * @returns how many bytes went out, which may be fewer than given: the rest is sent without descriptors
 * @throws SystemError: EPIPE, EAGAIN, EBADF...
 */
export function sendFds(socket: number, bytes: Uint8Array, fds: readonly number[]): number {
	if (!(bytes instanceof Uint8Array) || bytes.byteLength === 0) throw new TypeError("bytes must be a Uint8Array of at least one byte");
	whole(fds.length, "the number of descriptors", 1, MAX_SENT_FDS);
	for (const fd of fds) whole(fd, "descriptor", 0, MAX_INT);
	return checked(addon().sendFds(whole(socket, "socket", 0, MAX_INT), bytes, [...fds]), "sendmsg", String(socket));
}
