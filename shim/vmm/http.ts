/**
 * The piece of HTTP/1.1 that Cloud Hypervisor's API socket speaks: one request at a time on a kept connection, bodies by Content-Length only.
 * Written over a bare socket, because descriptors go with a request as ancillary data, which Node's own client can't send.
 */

import { messageOf } from "../base/errors.ts";
import { MessageSocket } from "../host/message-socket.ts";
import type { OnBytes } from "../host/message-socket.ts";

/** The VMM ends when it is sent a body of 300 KiB; 200 KiB is known to pass. */
export const MAX_REQUEST_BODY_BYTES = 200 * 1024;
const MAX_RESPONSE_HEAD_BYTES = 8 * 1024;
const MAX_RESPONSE_BODY_BYTES = 8 * 1024 * 1024;
const HEAD_END = Buffer.from("\r\n\r\n");

/** One request; `path` begins with `/`. */
export interface HttpRequest {
	readonly method: "GET" | "PUT";
	readonly path: string;
	readonly body?: Buffer | undefined;
	/** Descriptors that go with the first byte; they stay open here. */
	readonly fds?: readonly number[] | undefined;
}

/** One answer. */
export interface HttpResponse {
	readonly status: number;
	readonly body: Buffer;
}

/** The connection ended, or could not be made, before an answer was there. */
export class ConnectionLost extends Error {
	override readonly name = "ConnectionLost";
}

/** The answer is not of the form that the API gives. */
export class MalformedAnswer extends Error {
	override readonly name = "MalformedAnswer";
}

/** Gives the bytes of a request. */
export function encodeRequest(request: HttpRequest): Buffer {
	const lines = [`${request.method} ${request.path} HTTP/1.1`, "Host: localhost", "Accept: application/json"];
	if (request.body !== undefined) lines.push("Content-Type: application/json", `Content-Length: ${request.body.byteLength}`);
	const head = Buffer.from(`${lines.join("\r\n")}\r\n\r\n`, "latin1");
	return request.body === undefined ? head : Buffer.concat([head, request.body]);
}

/** Puts an answer together from what arrives. */
export class ResponseReader {
	#received: Buffer = Buffer.alloc(0);
	#head: { readonly status: number; readonly length: number; readonly closes: boolean } | undefined;

	/** True when the peer said that it closes the connection after this answer. */
	get closes(): boolean {
		return this.#head?.closes ?? true;
	}

	/**
	 * Takes a chunk.
	 * @returns the answer once it is whole
	 * @throws MalformedAnswer, also when something follows the answer: nothing was asked for
	 */
	push(chunk: Buffer): HttpResponse | undefined {
		this.#received = this.#received.byteLength === 0 ? chunk : Buffer.concat([this.#received, chunk]);
		if (this.#head === undefined) {
			const end = this.#received.indexOf(HEAD_END);
			if (end < 0) {
				if (this.#received.byteLength > MAX_RESPONSE_HEAD_BYTES)
					throw new MalformedAnswer(`no end of the head within ${MAX_RESPONSE_HEAD_BYTES} bytes`);
				return undefined;
			}
			this.#head = parseHead(this.#received.toString("latin1", 0, end));
			this.#received = this.#received.subarray(end + HEAD_END.byteLength);
		}
		if (this.#received.byteLength < this.#head.length) return undefined;
		if (this.#received.byteLength > this.#head.length) throw new MalformedAnswer("more bytes than Content-Length says");
		return { status: this.#head.status, body: this.#received };
	}
}

function parseHead(head: string): { status: number; length: number; closes: boolean } {
	const [first = "", ...lines] = head.split("\r\n");
	const status = /^HTTP\/1\.[01] ([1-5][0-9]{2})(?: |$)/.exec(first)?.[1];
	if (status === undefined) throw new MalformedAnswer(`status line ${JSON.stringify(first.slice(0, 80))}`);
	let length = 0;
	let closes = false;
	for (const line of lines) {
		const colon = line.indexOf(":");
		const name = line.slice(0, colon).toLowerCase();
		const value = line.slice(colon + 1).trim();
		if (name === "transfer-encoding") throw new MalformedAnswer(`Transfer-Encoding ${value}`);
		if (name === "connection") closes = value.toLowerCase() === "close";
		if (name !== "content-length") continue;
		if (!/^[0-9]{1,10}$/.test(value) || Number(value) > MAX_RESPONSE_BODY_BYTES) throw new MalformedAnswer(`Content-Length ${value}`);
		length = Number(value);
	}
	return { status: Number(status), length, closes };
}

/** A kept connection to an API socket. The caller sees to it that exchanges never overlap. */
export class ApiConnection {
	#path: string;
	#idle: Peer | undefined;
	#closed = false;

	/** Connects when the first exchange needs it. */
	constructor(path: string) {
		this.#path = path;
	}

	/**
	 * Sends a request and waits for its answer. A request with descriptors has a connection of its own.
	 * When `signal` aborts, the connection is closed, since the answer would meet the next request.
	 * @throws ConnectionLost, MalformedAnswer, or the signal's reason
	 */
	async exchange(request: HttpRequest, signal: AbortSignal): Promise<HttpResponse> {
		signal.throwIfAborted();
		if (this.#closed) throw new ConnectionLost("the connection was given up");
		const { fds = [] } = request;
		const peer = (fds.length === 0 ? this.#take() : undefined) ?? new Peer(this.#path);
		try {
			const { response, closes } = await peer.ask(encodeRequest(request), fds, signal);
			if (fds.length === 0 && !closes && !this.#closed) this.#idle = peer.rest();
			else peer.close();
			return response;
		} catch (error) {
			peer.close();
			throw error;
		}
	}

	/** The socket has another path from now on; a kept connection stays. */
	moveTo(path: string): void {
		this.#path = path;
	}

	/** Closes it for good: another VMM may listen at the same path one day. An exchange that runs goes on, and is the last one. */
	close(): void {
		this.#closed = true;
		this.#take()?.close();
	}

	#take(): Peer | undefined {
		const peer = this.#idle;
		this.#idle = undefined;
		return peer?.closed === true ? undefined : peer;
	}
}

type Answer = { readonly response: HttpResponse; readonly closes: boolean };

/** One connection. */
class Peer {
	readonly #socket: MessageSocket;
	#onBytes: OnBytes;
	closed = false;

	/** @throws ConnectionLost */
	constructor(path: string) {
		// Nothing may come that nobody asked for: whatever does ends the connection.
		this.#onBytes = () => this.close();
		try {
			this.#socket = new MessageSocket(path, (bytes) => this.#onBytes(bytes));
		} catch (error) {
			throw new ConnectionLost(messageOf(error), { cause: error });
		}
	}

	/** Sends a request, with descriptors if there are any. @throws ConnectionLost, MalformedAnswer, or the signal's reason; it is to be closed then */
	ask(request: Buffer, fds: readonly number[], signal: AbortSignal): Promise<Answer> {
		const reader = new ResponseReader();
		return new Promise<Answer>((resolve, reject) => {
			const onAbort = (): void => reject(signal.reason);
			const finish = (settle: () => void): void => {
				signal.removeEventListener("abort", onAbort);
				settle();
			};
			this.#onBytes = (bytes) => {
				try {
					if (bytes === undefined) throw new ConnectionLost("closed the connection without an answer");
					const response = reader.push(bytes);
					if (response !== undefined) finish(() => resolve({ response, closes: reader.closes }));
				} catch (error) {
					finish(() => reject(error));
				}
			};
			signal.addEventListener("abort", onAbort, { once: true });
			try {
				this.#socket.send(request, fds);
			} catch (error) {
				finish(() => reject(new ConnectionLost(messageOf(error), { cause: error })));
			}
		});
	}

	/** The exchange is over, and the connection is kept for the next one. */
	rest(): this {
		this.#onBytes = () => this.close();
		return this;
	}

	close(): void {
		this.closed = true;
		this.#socket.close();
	}
}
