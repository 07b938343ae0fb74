/** FIFOs, bare descriptors, and copies that keep holes. */

import { addon, checked, MAX_INT, plain, whole } from "./load.ts";

/**
 * Makes a FIFO (mkfifo(3)).
 * @param mode permission bits, less the umask
 * @throws SystemError: EEXIST, ENOENT, ENOSPC...
 */
export function makeFifo(path: string, mode: number): void {
	checked(addon().makeFifo(plain(path, "path"), whole(mode, "mode", 0, 0o777)), "mkfifo", path);
}

/**
 * Closes a bare descriptor that one of these functions gave.
 * @throws SystemError: EBADF
 */
export function closeFd(fd: number): void {
	checked(addon().closeFd(whole(fd, "fd", 0, MAX_INT)), "close", String(fd));
}

/**
 * Makes one file hold what another one holds: data extents are copied to their places, all else of it becomes a hole (lseek(2), SEEK_DATA). On a thread of its
 * own; both descriptors stay open, and are not read or written through by others meanwhile.
 * @returns how many bytes were copied
 * @throws SystemError: ENOSPC, EBADF, EINVAL (no such files), EIO (it has become shorter)...
 */
export async function copyData(from: number, to: number): Promise<number> {
	const copied = addon().copyData(whole(from, "from", 0, MAX_INT), whole(to, "to", 0, MAX_INT));
	return checked(await copied, "copy", String(from));
}
