/** ttrpc frames and their Request and Response messages (containerd/ttrpc, PROTOCOL.md and request.proto). Unary calls only. */

import protobuf from "protobufjs/minimal.js";
import { messageOf, ShimError } from "../base/errors.ts";
import type { ErrorReason } from "../base/errors.ts";
import { Assembler } from "./assembler.ts";

export const TTRPC_HEADER_BYTES = 10;
/** Longest data of a frame that ttrpc allows. */
export const MAX_DATA_BYTES = 4 * 1024 * 1024;

export const FrameType = { request: 1, response: 2, data: 3 } as const;
/** Flag of a request or data frame: the sender goes on sending data, so the call is not unary. */
export const FLAG_REMOTE_OPEN = 0x02;

/** One ttrpc frame. */
export interface Frame {
	/** Odd for calls that the client opens. */
	readonly streamId: number;
	readonly type: number;
	readonly flags: number;
	readonly data: Buffer;
}

/** The message in a request frame. */
export interface Request {
	readonly service: string;
	readonly method: string;
	readonly payload: Uint8Array;
	/** The caller's time-out in milliseconds; absent when it has none. */
	readonly timeoutMs?: number | undefined;
	readonly metadata?: Readonly<Record<string, string>> | undefined;
}

/** The message in a response frame. `code` 0 is success. */
export interface Response {
	readonly code: number;
	readonly message: string;
	readonly payload: Uint8Array;
}

const NANOS_PER_MS = 1_000_000;
const MAX_METADATA_PAIRS = 1024;

/** One frame as bytes. @throws ShimError `call.invalid` when the data is over 4 MiB */
export function encodeFrame(type: number, streamId: number, data: Uint8Array): Buffer {
	if (data.length > MAX_DATA_BYTES)
		throw new ShimError("call.invalid", `a ttrpc message of ${data.length} bytes is over the limit of ${MAX_DATA_BYTES}`);
	const frame = Buffer.allocUnsafe(TTRPC_HEADER_BYTES + data.length);
	frame.writeUInt32BE(data.length, 0);
	frame.writeUInt32BE(streamId, 4);
	frame.writeUInt8(type, 8);
	frame.writeUInt8(0, 9);
	frame.set(data, TTRPC_HEADER_BYTES);
	return frame;
}

/**
 * Splits one whole frame, header included.
 * @throws ShimError with `reason` when the header's length and the bytes given differ
 */
export function decodeFrame(bytes: Buffer, reason: ErrorReason): Frame {
	if (bytes.length < TTRPC_HEADER_BYTES || bytes.readUInt32BE(0) !== bytes.length - TTRPC_HEADER_BYTES) {
		throw new ShimError(reason, `a ttrpc frame of ${bytes.length} bytes has a header for another length`);
	}
	return { streamId: bytes.readUInt32BE(4), type: bytes.readUInt8(8), flags: bytes.readUInt8(9), data: bytes.subarray(TTRPC_HEADER_BYTES) };
}

/** Cuts a byte stream into ttrpc frames. */
export class FrameReader {
	readonly #reason: ErrorReason;
	readonly #assembler: Assembler;

	/**
	 * @param reason of the error when the stream is not ttrpc
	 * @param maxDataBytes longest data that is taken; never over ttrpc's own limit
	 */
	constructor(reason: ErrorReason, maxDataBytes: number = MAX_DATA_BYTES) {
		this.#reason = reason;
		const limit = Math.min(maxDataBytes, MAX_DATA_BYTES);
		this.#assembler = new Assembler({
			headerBytes: TTRPC_HEADER_BYTES,
			frameBytes: (header) => {
				const length = header.readUInt32BE(0);
				if (length > limit) throw new ShimError(reason, `a ttrpc frame announces ${length} bytes of data; the limit is ${limit}`);
				return TTRPC_HEADER_BYTES + length;
			},
		});
	}

	/** Frames that the chunk completes. @throws ShimError when a frame is over the limit: the stream is lost then */
	push(chunk: Buffer): Frame[] {
		return this.#assembler.push(chunk).map((bytes) => decodeFrame(bytes, this.#reason));
	}
}

/** Encodes a request message. */
export function encodeRequest(request: Request): Uint8Array {
	const writer = protobuf.Writer.create();
	writer.uint32(tag(1, 2)).string(request.service);
	writer.uint32(tag(2, 2)).string(request.method);
	if (request.payload.length > 0) writer.uint32(tag(3, 2)).bytes(request.payload);
	if (request.timeoutMs !== undefined && request.timeoutMs > 0)
		writer.uint32(tag(4, 0)).int64(Math.round(request.timeoutMs) * NANOS_PER_MS);
	for (const [key, value] of Object.entries(request.metadata ?? {})) {
		writer.uint32(tag(5, 2)).fork().uint32(tag(1, 2)).string(key).uint32(tag(2, 2)).string(value).ldelim();
	}
	return writer.finish();
}

/** Decodes a request message; unknown fields are skipped. @throws ShimError `call.invalid` when it is not one */
export function decodeRequest(bytes: Uint8Array): Request {
	let service = "";
	let method = "";
	let payload: Uint8Array = new Uint8Array(0);
	let timeoutMs: number | undefined;
	const metadata: Record<string, string> = Object.create(null) as Record<string, string>;
	let pairs = 0;
	eachField(bytes, "call.invalid", "request", (reader, field) => {
		if (field === tag(1, 2)) service = reader.string();
		else if (field === tag(2, 2)) method = reader.string();
		else if (field === tag(3, 2)) payload = reader.bytes();
		else if (field === tag(4, 0)) timeoutMs = toMs(reader.int64());
		else if (field === tag(5, 2)) {
			pairs += 1;
			if (pairs > MAX_METADATA_PAIRS) throw new Error(`more than ${MAX_METADATA_PAIRS} metadata pairs`);
			const [key, value] = decodePair(reader.bytes());
			metadata[key] = value;
		} else return false;
		return true;
	});
	if (service === "" || method === "") throw new ShimError("call.invalid", "a ttrpc request names no service or no method");
	return { service, method, payload, timeoutMs, metadata };
}

/** Encodes a response message. A status is written only for failures, as ttrpc does. */
export function encodeResponse(response: Response): Uint8Array {
	const writer = protobuf.Writer.create();
	if (response.code !== 0) {
		writer.uint32(tag(1, 2)).fork().uint32(tag(1, 0)).int32(response.code).uint32(tag(2, 2)).string(response.message).ldelim();
	}
	if (response.payload.length > 0) writer.uint32(tag(2, 2)).bytes(response.payload);
	return writer.finish();
}

/** Decodes a response message; unknown fields are skipped. @throws ShimError with `reason` when it is not one */
export function decodeResponse(bytes: Uint8Array, reason: ErrorReason): Response {
	let code = 0;
	let message = "";
	let payload: Uint8Array = new Uint8Array(0);
	eachField(bytes, reason, "response", (reader, field) => {
		if (field === tag(1, 2)) {
			eachField(reader.bytes(), reason, "status", (status, statusField) => {
				if (statusField === tag(1, 0)) code = status.int32();
				else if (statusField === tag(2, 2)) message = status.string();
				else return false;
				return true;
			});
		} else if (field === tag(2, 2)) payload = reader.bytes();
		else return false;
		return true;
	});
	return { code, message, payload };
}

/** A protobuf field's tag: number and wire type (0 varint, 2 length-delimited). */
export function tag(field: number, wireType: 0 | 2): number {
	return (field << 3) | wireType;
}

/** Calls `take` with each field's tag; a field that it does not take is skipped. */
function eachField(bytes: Uint8Array, reason: ErrorReason, what: string, take: (reader: protobuf.Reader, field: number) => boolean): void {
	try {
		const reader = protobuf.Reader.create(bytes);
		while (reader.pos < reader.len) {
			const field = reader.uint32();
			if (!take(reader, field)) reader.skipType(field & 7);
		}
	} catch (error) {
		throw error instanceof ShimError
			? error
			: new ShimError(reason, `a ttrpc ${what} can't be decoded: ${messageOf(error)}`, { cause: error });
	}
}

function decodePair(bytes: Uint8Array): [string, string] {
	let key = "";
	let value = "";
	eachField(bytes, "call.invalid", "metadata pair", (reader, field) => {
		if (field === tag(1, 2)) key = reader.string();
		else if (field === tag(2, 2)) value = reader.string();
		else return false;
		return true;
	});
	return [key, value];
}

/** Nanoseconds as protobufjs gives an int64 (a number, or a Long-like object of two halves) in whole milliseconds; none when not positive. */
function toMs(nanos: number | { toString(): string }): number | undefined {
	const value = Number(nanos.toString());
	return value > 0 ? Math.ceil(value / NANOS_PER_MS) : undefined;
}
