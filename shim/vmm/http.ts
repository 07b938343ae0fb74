/**
 * The piece of HTTP/1.1 that Cloud Hypervisor's API socket speaks: one request at a time on a kept connection, bodies by Content-Length only.
 * Written over a plain socket, because descriptors go with a request as ancillary data, which Node's own client can't send.
 */

import { connect } from "node:net";
import type { Socket } from "node:net";

import { errnoOf, messageOf } from "../base/errors.ts";
import { connectWithFds } from "../host/sockets.ts";

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
	#idle: Socket | undefined;

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
		const kept = request.fds === undefined || request.fds.length === 0;
		const socket = this.#open(request, kept);
		try {
			const { response, closes } = await answerOn(socket, signal);
			if (kept && !closes) this.#keep(socket);
			else socket.destroy();
			return response;
		} catch (error) {
			// A late error of a socket that nobody needs must not be thrown by the emitter.
			socket.on("error", () => undefined).destroy();
			throw error;
		}
	}

	/** The socket has another path from now on; a kept connection stays. */
	moveTo(path: string): void {
		this.#path = path;
	}

	/** Closes the idle connection; the next exchange would make a new one. */
	close(): void {
		this.#take()
			?.on("error", () => undefined)
			.destroy();
	}

	#open(request: HttpRequest, kept: boolean): Socket {
		const bytes = encodeRequest(request);
		if (!kept) return this.#openWithFds(bytes, request.fds ?? []);
		const socket = this.#take() ?? connect(this.#path);
		socket.write(bytes);
		return socket;
	}

	#openWithFds(bytes: Buffer, fds: readonly number[]): Socket {
		try {
			return connectWithFds(this.#path, bytes, fds);
		} catch (error) {
			throw new ConnectionLost(messageOf(error), { cause: error });
		}
	}

	#keep(socket: Socket): void {
		for (const event of IDLE_EVENTS) socket.on(event, this.#drop);
		socket.unref();
		this.#idle = socket;
	}

	#take(): Socket | undefined {
		const socket = this.#idle;
		this.#idle = undefined;
		for (const event of IDLE_EVENTS) socket?.off(event, this.#drop);
		return socket?.ref();
	}

	/** Nothing may come on an idle connection: whatever does ends it. */
	readonly #drop = (): void => this.close();
}

const IDLE_EVENTS = ["error", "end", "close", "data"] as const;

function answerOn(socket: Socket, signal: AbortSignal): Promise<{ response: HttpResponse; closes: boolean }> {
	return new Promise((resolve, reject) => {
		const reader = new ResponseReader();
		const finish = (settle: () => void): void => {
			signal.removeEventListener("abort", onAbort);
			socket.off("error", onLost).off("end", onLost).off("close", onLost).off("data", onData);
			settle();
		};
		const onAbort = (): void => finish(() => reject(signal.reason));
		const onLost = (cause?: unknown): void => {
			const error = cause instanceof Error ? cause : undefined;
			const text = errnoOf(error) === undefined || socket.bytesRead > 0 ? "closed the connection without an answer" : messageOf(error);
			finish(() => reject(new ConnectionLost(text, { cause: error })));
		};
		const onData = (chunk: Buffer): void => {
			try {
				const response = reader.push(chunk);
				if (response !== undefined) finish(() => resolve({ response, closes: reader.closes }));
			} catch (error) {
				finish(() => reject(error));
			}
		};
		signal.addEventListener("abort", onAbort, { once: true });
		socket.on("error", onLost).on("end", onLost).on("close", onLost).on("data", onData);
	});
}
