/** What arrives on a socket with all that comes beside the bytes: descriptors, and the bounds of messages. */

import { addon, checked, MAX_INT, whole } from "./load.ts";

/** Something that arrived. */
export interface Received {
	/** At most 64 KiB; empty at the end of a stream, or with an error. */
	readonly bytes: Buffer;
	/** Descriptors that came with them: the receiver closes them. */
	readonly fds: readonly number[];
	/** 0, or the negative errno of a failure: ENOBUFS when messages were lost; after any other nothing more comes. */
	readonly error: number;
}

/**
 * Calls back for each message (or piece of a stream) that arrives on a socket, until the stream ends. The call does not keep the program alive, and holds a
 * copy of the descriptor; nobody else may read from the socket meanwhile.
 * @returns how to end it; harmless after the end
 * @throws SystemError: EBADF, EPERM when the descriptor can't be waited for...
 */
export function receive(fd: number, callback: (received: Received) => void): () => void {
	if (typeof callback !== "function") throw new TypeError("callback must be a function");
	const native = addon();
	const heard = (length: number, bytes: Buffer, fds: readonly number[]): void => callback({ bytes, fds, error: Math.min(0, length) });
	const id = checked(native.receive(whole(fd, "fd", 0, MAX_INT), heard), "receive", String(fd));
	return () => native.unreceive(id);
}
