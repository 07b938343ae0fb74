/**
 * A gRPC client over one HTTP/2 connection to a unix socket (grpc, doc/PROTOCOL-HTTP2.md): as much of it as questions to containerd need. A whole
 * library takes several times the memory, which counts in a daemon that every node runs (bench/README.md, "The daemon's flags").
 */

import type { ClientHttp2Session, ClientHttp2Stream, IncomingHttpHeaders } from "node:http2";
import { connect } from "node:net";

import { Assembler } from "./assembler.ts";

/** A status other than OK. Codes are those of `GrpcCode`. */
export class GrpcError extends Error {
	override readonly name = "GrpcError";
	readonly code: number;

	constructor(code: number, message: string) {
		super(message);
		this.code = code;
	}
}

/** How one call is bounded. */
export interface GrpcCall {
	/** 0 for a stream without an end. */
	readonly timeoutMs: number;
	readonly signal?: AbortSignal | undefined;
	/** Headers of the request beside the protocol's own. */
	readonly metadata?: Readonly<Record<string, string>>;
}

/** Before each message: whether it is compressed, which was not agreed on, and its length. */
const PREFIX_BYTES = 5;
const MAX_MESSAGE_BYTES = 16 * 1024 * 1024;
/** How much may be on its way here: the protocol's own 64 KiB make many turns of a large blob. */
const WINDOW_BYTES = 1024 * 1024;
/** HTTP/2's code of a stream that its client has no more use for (RFC 9113, section 7). */
const CANCEL = 8;
/** The longest time that the header can tell in milliseconds (eight digits). */
const MAX_TIMEOUT_MS = 99_999_999;

interface Connection {
	readonly session: ClientHttp2Session;
	/** On their way. */
	calls: number;
}

/** One server, by the path of its socket; connected while it is needed, and again after the server's restart. Its owner calls `close`. */
export class GrpcChannel {
	readonly #path: string;
	#connection: Connection | undefined;

	constructor(path: string) {
		this.#path = path;
	}

	/** Closes the connection; calls on their way fail. A later call would make a new one. */
	close(): void {
		this.#connection?.session.destroy();
		this.#connection = undefined;
	}

	/**
	 * A call with one answer.
	 * @param method `/package.Service/Method`
	 * @throws GrpcError with the server's status; Error when the connection fails, the time is up or the signal aborts
	 */
	async unary(method: string, message: Uint8Array, call: GrpcCall): Promise<Buffer> {
		let answer: Buffer | undefined;
		for await (const one of this.stream(method, message, call)) answer ??= one;
		if (answer === undefined) throw new Error(`${method} was answered without a message`);
		return answer;
	}

	/** A call with a stream of answers. @throws as `unary` */
	async *stream(method: string, message: Uint8Array, call: GrpcCall): AsyncGenerator<Buffer> {
		const connection = await this.#connect();
		const { session } = connection;
		call.signal?.throwIfAborted();
		const stream = session.request({
			":method": "POST",
			":path": method,
			te: "trailers",
			"content-type": "application/grpc",
			...(call.timeoutMs > 0 ? { "grpc-timeout": `${Math.min(Math.ceil(call.timeoutMs), MAX_TIMEOUT_MS)}m` } : {}),
			...call.metadata,
		});
		const end = bounded(stream, method, call);
		const status = statusOf(stream);
		if (connection.calls++ === 0) session.ref();
		try {
			stream.end(framed(message));
			const reader = messageReader(method);
			for await (const chunk of stream) yield* reader.push(chunk as Buffer);
			throwUnlessOk(method, status());
		} finally {
			end();
			stream.close(CANCEL);
			// A connection that nobody uses keeps no program alive.
			if (--connection.calls === 0) session.unref();
		}
	}

	async #connect(): Promise<Connection> {
		// Late: many a daemon never asks, and this part of Node.js takes 2 MiB.
		const http2 = await import("node:http2");
		const known = this.#connection;
		if (known !== undefined && !known.session.closed && !known.session.destroyed) return known;
		const session = http2.connect("http://localhost", {
			createConnection: () => connect(this.#path),
			settings: { enablePush: false, initialWindowSize: WINDOW_BYTES },
		});
		session.once("connect", () => session.setLocalWindowSize(WINDOW_BYTES));
		// The calls on it fail with it, and tell of it.
		session.on("error", () => undefined);
		session.unref();
		this.#connection = { session, calls: 0 };
		return this.#connection;
	}
}

function framed(message: Uint8Array): Buffer {
	const frame = Buffer.alloc(PREFIX_BYTES + message.length);
	frame.writeUInt32BE(message.length, 1);
	frame.set(message, PREFIX_BYTES);
	return frame;
}

function messageReader(method: string): { push(chunk: Buffer): Buffer[] } {
	const assembler = new Assembler({
		headerBytes: PREFIX_BYTES,
		frameBytes: (header) => {
			const length = header.readUInt32BE(1);
			if (header.readUInt8(0) !== 0 || length > MAX_MESSAGE_BYTES)
				throw new Error(`${method} was answered with a compressed message, or one of ${length} bytes`);
			return PREFIX_BYTES + length;
		},
	});
	return { push: (chunk) => assembler.push(chunk).map((frame) => frame.subarray(PREFIX_BYTES)) };
}

/** Ends the stream when the time is up or the signal aborts. @returns what to call when it has ended */
function bounded(stream: ClientHttp2Stream, method: string, { timeoutMs, signal }: GrpcCall): () => void {
	const late = (): void => void stream.destroy(new Error(`${method} was not answered within ${timeoutMs} ms`));
	const timer = timeoutMs > 0 ? setTimeout(late, timeoutMs) : undefined;
	const onAbort = (): void => void stream.destroy(signal?.reason instanceof Error ? signal.reason : new Error(`${method} was canceled`));
	signal?.addEventListener("abort", onAbort, { once: true });
	return () => {
		clearTimeout(timer);
		signal?.removeEventListener("abort", onAbort);
	};
}

/** The status comes with the trailers, or with the headers of an answer that has nothing else. */
function statusOf(stream: ClientHttp2Stream): () => IncomingHttpHeaders {
	let found: IncomingHttpHeaders = {};
	const take = (headers: IncomingHttpHeaders): void => {
		found = { ...found, ...headers };
	};
	stream.on("response", take).on("trailers", take);
	return () => found;
}

function throwUnlessOk(method: string, headers: IncomingHttpHeaders): void {
	const status = headers["grpc-status"];
	if (status === "0") return;
	if (typeof status !== "string") throw new Error(`${method} was answered without a status (HTTP status ${String(headers[":status"])})`);
	throw new GrpcError(Number(status), unescaped(String(headers["grpc-message"] ?? "")));
}

/** The message is percent-encoded; one that is not is told as it is. */
function unescaped(text: string): string {
	try {
		return decodeURIComponent(text);
	} catch {
		return text;
	}
}
