/** Unix sockets: listening ones for a child, which Node can't make, and whether somebody listens. */

import { closeFd } from "../../native/src/file.ts";
import { connectUnix, listenUnix as listen } from "../../native/src/socket.ts";
import { errnoOf } from "../base/errors.ts";

export { closeFd } from "../../native/src/file.ts";

/** The longest path of a unix socket in bytes (`sun_path` of unix(7), less the final NUL). */
export const MAX_SOCKET_PATH_BYTES = 107;

const BACKLOG = 64;
const OWNER_ONLY = 0o600;

/**
 * Listens at `path`, for this user only.
 * @param blocking for a child that waits in accept(2)
 * @returns the descriptor, to be handed to a child and closed with `closeFd`
 * @throws SystemError: EADDRINUSE when the file exists, ENAMETOOLONG...
 */
export function listenUnix(path: string, blocking = false): number {
	return listen(path, BACKLOG, OWNER_ONLY, blocking);
}

/** True when somebody listens at `path`: a file that a dead process has left refuses. */
export function isListening(path: string): boolean {
	try {
		closeFd(connectUnix(path));
		return true;
	} catch (error) {
		// Its backlog is full.
		return errnoOf(error) === "EAGAIN";
	}
}
