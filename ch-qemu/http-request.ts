/**
 * The part of HTTP/1.1 that the VMM's own server understands: no chunked bodies, no query strings, one line at most 1 KiB long.
 *
 * Bytes go in as they come; complete requests come out.
 */

import type { Descriptors } from "./descriptors.ts";

/** A request as the handler gets it, with what came beside its bytes. */
export type ReceivedRequest = HttpRequest & { readonly descriptors: Descriptors };

/** One request. `body` is undefined when the client sent none (or one of length 0, which counts as none). */
export type HttpRequest = {
	readonly method: "GET" | "PUT" | "PATCH";
	readonly path: string;
	readonly version: "1.0" | "1.1";
	readonly keepAlive: boolean;
	readonly body?: string;
};

/** What the bytes so far amount to. `continue`: the client waits for leave to send its body. */
export type HttpEvent =
	| { readonly kind: "request"; readonly request: HttpRequest }
	| { readonly kind: "continue" }
	| { readonly kind: "bad"; readonly reason: string };

const LINE_MAX_BYTES = 1024;
const HEADERS_MAX = 64;
/**
 * The real VMM dies of a body of 300 KiB and more (200 KiB pass). This one refuses such a body, so that the client learns of its mistake.
 */
export const BODY_MAX_BYTES = 300 * 1024 - 1;

type Head = {
	method: HttpRequest["method"];
	path: string;
	version: HttpRequest["version"];
	keepAlive: boolean;
	length: number;
	expect: boolean;
};

/** The parser of one connection. After a `bad` event it gives nothing more: the connection is to be closed. */
export class HttpParser {
	#buffer: Buffer = Buffer.alloc(0);
	#lines: string[] = [];
	#head: Head | undefined;
	#broken = false;

	/** Takes bytes, returns what they completed. */
	push(chunk: Buffer): HttpEvent[] {
		if (this.#broken) return [];
		this.#buffer = this.#buffer.length === 0 ? chunk : Buffer.concat([this.#buffer, chunk]);
		const events: HttpEvent[] = [];
		try {
			for (let event = this.#next(); event !== undefined; event = this.#next()) events.push(event);
		} catch (error) {
			this.#broken = true;
			events.push({ kind: "bad", reason: error instanceof Error ? error.message : String(error) });
		}
		return events;
	}

	#next(): HttpEvent | undefined {
		if (this.#head === undefined) {
			if (!this.#readHead()) return undefined;
			const head = this.#head as Head | undefined;
			if (head?.expect && head.length > this.#buffer.length) return { kind: "continue" };
		}
		const head = this.#head;
		if (head === undefined || this.#buffer.length < head.length) return undefined;
		const body = this.#buffer.subarray(0, head.length);
		this.#buffer = this.#buffer.subarray(head.length);
		this.#head = undefined;
		const { method, path, version, keepAlive } = head;
		return { kind: "request", request: { method, path, version, keepAlive, ...(head.length > 0 ? { body: body.toString("utf8") } : {}) } };
	}

	/** Reads lines up to the empty one. True when the head is complete. */
	#readHead(): boolean {
		for (;;) {
			const end = this.#buffer.indexOf("\r\n");
			if (end < 0 || end > LINE_MAX_BYTES) {
				if (end > LINE_MAX_BYTES || this.#buffer.length > LINE_MAX_BYTES)
					throw new Error("Invalid HTTP Request: a line is longer than 1024 bytes");
				return false;
			}
			const line = this.#buffer.subarray(0, end).toString("latin1");
			this.#buffer = this.#buffer.subarray(end + 2);
			if (line !== "") {
				this.#lines.push(line);
				if (this.#lines.length === 1) parseRequestLine(line);
				if (this.#lines.length > HEADERS_MAX) throw new Error("Invalid HTTP Request: more than 64 headers");
				continue;
			}
			const [first, ...headers] = this.#lines;
			this.#lines = [];
			if (first === undefined) throw new Error("Invalid HTTP Request: no request line");
			this.#head = parseHead(first, headers);
			return true;
		}
	}
}

function parseRequestLine(line: string): Pick<Head, "method" | "path" | "version"> {
	const [method, uri, version, ...rest] = line.split(" ");
	if (method !== "GET" && method !== "PUT" && method !== "PATCH") throw new Error("Invalid HTTP Method");
	if (uri === undefined || uri === "" || rest.length > 0) throw new Error("Invalid URI");
	if (version !== "HTTP/1.1" && version !== "HTTP/1.0") throw new Error("Invalid HTTP Version");
	const absolute = /^http:\/\/[^/]*/.exec(uri);
	const path = absolute === null ? uri : uri.slice(absolute[0].length);
	return { method, path, version: version === "HTTP/1.0" ? "1.0" : "1.1" };
}

function parseHead(first: string, headers: readonly string[]): Head {
	const head: Head = { ...parseRequestLine(first), keepAlive: true, length: 0, expect: false };
	head.keepAlive = head.version === "1.1";
	for (const line of headers) {
		const colon = line.indexOf(":");
		if (colon < 0) throw new Error("Invalid HTTP Request: a header without a colon");
		const name = line.slice(0, colon).trim().toLowerCase();
		const value = line.slice(colon + 1).trim();
		if (name === "content-length") head.length = parseLength(value);
		else if (name === "transfer-encoding" && value.toLowerCase() !== "identity")
			throw new Error("Invalid HTTP Request: chunked bodies are refused");
		else if (name === "expect" && value.toLowerCase() === "100-continue") head.expect = true;
		else if (name === "connection" && value.toLowerCase() === "close") head.keepAlive = false;
		else if (name === "accept-encoding" && /identity\s*;\s*q=0(\.0*)?\s*(,|$)/.test(value))
			throw new Error("Invalid HTTP Request: Accept-Encoding refuses identity");
	}
	if (head.method === "GET" && head.length > 0) throw new Error("Invalid HTTP Request: a GET has no body");
	return head;
}

function parseLength(value: string): number {
	if (!/^\d{1,15}$/.test(value)) throw new Error("Invalid HTTP Request: Content-Length is no number");
	const length = Number(value);
	if (length > BODY_MAX_BYTES) throw new Error(`Request payload of ${length} bytes: the real VMM dies of 300 KiB and more, keep it below`);
	return length;
}
