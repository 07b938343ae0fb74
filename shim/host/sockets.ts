/** Unix sockets that Node can't make: listening ones for a child, and messages with descriptors. */

import { once } from "node:events";
import { closeSync } from "node:fs";
import { connect, Socket } from "node:net";

import { connectUnix, listenUnix as listen, sendFds } from "../../native/src/socket.ts";

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

/**
 * Connects to `path` and sends the first bytes with descriptors attached; the descriptors stay open here.
 * @returns the connected socket, on which the answer comes; the caller destroys it
 * @throws SystemError: ECONNREFUSED, ENOENT, EPIPE...
 */
export function connectWithFds(path: string, bytes: Uint8Array, fds: readonly number[]): Socket {
	const fd = connectUnix(path);
	let sent: number;
	try {
		sent = sendFds(fd, bytes, fds);
	} catch (error) {
		closeSync(fd);
		throw error;
	}
	const socket = new Socket({ fd });
	if (sent < bytes.byteLength) socket.write(bytes.subarray(sent));
	return socket;
}

/** True when somebody listens at `path`: a file that a dead process has left refuses. */
export async function isListening(path: string): Promise<boolean> {
	const socket = connect(path);
	try {
		await once(socket, "connect");
		return true;
	} catch {
		return false;
	} finally {
		socket.destroy();
	}
}
