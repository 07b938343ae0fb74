/** The link between keepers and snpd: frames and the JSON in them. `docs/contracts.md`, "The link", is the source of every number and name here. */

import * as v from "valibot";
import { messageOf, ShimError } from "../base/errors.ts";
import { Assembler } from "./assembler.ts";

/** Kinds of frames. */
export const LinkKind = {
	hello: 1,
	opened: 2,
	closed: 3,
	frame: 4,
	replay: 5,
	streamOpen: 6,
	streamClose: 7,
	streamState: 8,
	end: 9,
	streamAsk: 10,
	control: 16,
} as const;

export const LINK_VERSION = 1;
const LENGTH_BYTES = 4;
const KIND_AND_CHANNEL_BYTES = 5;
/** Longest rest of a frame: a ttrpc frame of full size and room for its header. */
export const MAX_LINK_REST_BYTES = 4 * 1024 * 1024 + 64 * 1024;

/** One frame of the link. */
export interface LinkFrame {
	readonly kind: number;
	/** Connection, stream or request number, by kind. */
	readonly channel: number;
	readonly payload: Buffer;
}

/** One frame as bytes. @throws ShimError `call.invalid` when the payload is too long */
export function encodeLink(kind: number, channel: number, payload: Uint8Array = new Uint8Array(0)): Buffer {
	const rest = KIND_AND_CHANNEL_BYTES + payload.length;
	if (rest > MAX_LINK_REST_BYTES)
		throw new ShimError("call.invalid", `a link frame of ${rest} bytes is over the limit of ${MAX_LINK_REST_BYTES}`);
	const frame = Buffer.allocUnsafe(LENGTH_BYTES + rest);
	frame.writeUInt32BE(rest, 0);
	frame.writeUInt8(kind, 4);
	frame.writeUInt32BE(channel, 5);
	frame.set(payload, LENGTH_BYTES + KIND_AND_CHANNEL_BYTES);
	return frame;
}

/** One frame with a JSON payload as bytes. */
export function encodeLinkJson(kind: number, channel: number, value: unknown): Buffer {
	return encodeLink(kind, channel, Buffer.from(JSON.stringify(value)));
}

/** Cuts a byte stream into frames of the link. */
export class LinkReader {
	readonly #assembler = new Assembler({
		headerBytes: LENGTH_BYTES,
		frameBytes: (header) => {
			const rest = header.readUInt32BE(0);
			if (rest > MAX_LINK_REST_BYTES || rest < KIND_AND_CHANNEL_BYTES) {
				throw new ShimError(
					"call.invalid",
					`a link frame announces ${rest} bytes; ${KIND_AND_CHANNEL_BYTES} to ${MAX_LINK_REST_BYTES} are allowed`,
				);
			}
			return LENGTH_BYTES + rest;
		},
	});

	/** Frames that the chunk completes. @throws ShimError `call.invalid` on a length out of bounds: the link is lost then */
	push(chunk: Buffer): LinkFrame[] {
		return this.#assembler.push(chunk).map((frame) => ({
			kind: frame.readUInt8(4),
			channel: frame.readUInt32BE(5),
			payload: frame.subarray(LENGTH_BYTES + KIND_AND_CHANNEL_BYTES),
		}));
	}
}

const MAX_TEXT = 4096;
const text = v.pipe(v.string(), v.maxLength(MAX_TEXT));
const name = v.pipe(v.string(), v.minLength(1), v.maxLength(MAX_TEXT));
const u32 = v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(2 ** 32 - 1));
const channel = v.pipe(u32, v.minValue(1));
const count = v.pipe(v.number(), v.integer(), v.minValue(0));
const streamState = v.picklist(["opening", "open", "done", "failed"]);

/** State of one stdio stream as the keeper tells it. */
export const StreamStateSchema = v.object({
	state: streamState,
	bytes: v.optional(count, 0),
	hostPort: v.optional(u32, 0),
	error: v.optional(text, ""),
	/** In the answer to STREAM_ASK: what is here and was not read, and whether somebody has the FIFO open for reading. */
	unread: v.optional(count),
	reader: v.optional(v.boolean()),
});
export type StreamState = v.InferOutput<typeof StreamStateSchema>;

/** A keeper's HELLO. */
export const HelloSchema = v.object({
	version: v.literal(LINK_VERSION),
	resumed: v.boolean(),
	pid: v.pipe(u32, v.minValue(1)),
	podKey: v.pipe(v.string(), v.regex(/^[0-9a-f]{32}$/)),
	namespace: name,
	podId: name,
	address: text,
	ttrpcAddress: v.optional(text, ""),
	publishBinary: v.optional(text, ""),
	configFile: v.nullish(text, null),
	socket: name,
	bundle: text,
	channels: v.pipe(v.array(channel), v.maxLength(1024)),
	streams: v.pipe(v.array(v.object({ id: channel, ...StreamStateSchema.entries })), v.maxLength(16384)),
});
/** What a keeper says about itself when its link is made. */
export type Hello = v.InferOutput<typeof HelloSchema>;

/** How STREAM_CLOSE wants a stream to end (`docs/contracts.md`, "Container stdio"). */
export type CloseMode = "drain" | "abort" | "linger";

/** What STREAM_OPEN asks of the keeper. */
export interface StreamOpen {
	readonly direction: "in" | "out";
	readonly fifo: string;
	readonly vsock: string;
	readonly port: number;
	readonly token: string;
}

/**
 * Reads a JSON payload by a schema.
 * @throws ShimError `call.invalid` that names the frame and the first field that is wrong
 */
export function parseLinkJson<S extends v.GenericSchema>(schema: S, frameName: string, payload: Uint8Array): v.InferOutput<S> {
	let value: unknown;
	try {
		value = JSON.parse(Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength).toString("utf8"));
	} catch (error) {
		throw new ShimError("call.invalid", `${frameName} is not JSON: ${messageOf(error)}`, { cause: error });
	}
	const result = v.safeParse(schema, value);
	if (result.success) return result.output;
	const [issue] = result.issues;
	throw new ShimError("call.invalid", `${frameName}: ${v.getDotPath(issue) ?? "the whole"}: ${issue.message}`);
}
