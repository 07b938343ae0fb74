/**
 * A connection to a unix socket for small messages to and fro, made at once and without the machinery of Node's own sockets: to connect, send, receive and
 * close takes a quarter of their processor time (bench/README.md).
 */

import { closeSync, writeSync } from "node:fs";

import { receive } from "../../native/src/receive.ts";
import { connectUnix, sendFds } from "../../native/src/socket.ts";

/** Gets what arrives; `undefined` when nothing more will come, because the peer has closed or the connection failed. */
export type OnBytes = (bytes: Buffer | undefined) => void;

/** A connected socket. Whoever connects closes it. It does not keep the program alive. */
export class MessageSocket {
	readonly #fd: number;
	readonly #stop: () => void;
	#closed = false;

	/**
	 * Connects.
	 * @throws SystemError: ECONNREFUSED, ENOENT, EAGAIN when the listener's backlog is full...
	 */
	constructor(path: string, onBytes: OnBytes) {
		this.#fd = connectUnix(path);
		try {
			this.#stop = receive(this.#fd, ({ bytes, fds }) => {
				// Nobody asked for any.
				for (const fd of fds) closeSync(fd);
				if (!this.#closed) onBytes(bytes.byteLength === 0 ? undefined : bytes);
			});
		} catch (error) {
			closeSync(this.#fd);
			throw error;
		}
	}

	/**
	 * Sends a message of at most 208 KiB, all of it at once, with descriptors if there are any, which stay open here.
	 * @throws SystemError: EPIPE when the peer has closed; EAGAIN when it has not read earlier ones, and the connection is of no more use then
	 */
	send(bytes: Uint8Array, fds: readonly number[] = []): void {
		if (this.#closed) throw Object.assign(new Error("the connection is closed"), { code: "EPIPE" });
		const sent = fds.length === 0 ? writeSync(this.#fd, bytes) : sendFds(this.#fd, bytes, fds);
		if (sent < bytes.byteLength) throw Object.assign(new Error(`${sent} of ${bytes.byteLength} bytes were taken`), { code: "EAGAIN" });
	}

	/** Nothing is called back any more. Safe to call twice. */
	close(): void {
		if (this.#closed) return;
		this.#closed = true;
		this.#stop();
		closeSync(this.#fd);
	}
}
