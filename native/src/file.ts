/** FIFOs and bare descriptors. */

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
