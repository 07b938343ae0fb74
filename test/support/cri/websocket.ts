/** The client's side of WebSocket frames (RFC 6455) as far as a streaming server of Kubernetes needs them. */
import { randomBytes } from "node:crypto";

const FRAME_BYTES_MAX = 32 * 1024 * 1024;
const FINAL = 0x80;
const MASKED = 0x80;
const SHORT_LENGTH_MAX = 125;
const LENGTH_16 = 126;
const LENGTH_64 = 127;

/** Kinds of frames. */
export const OPCODE = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 } as const;

export type Frame = { readonly opcode: number; readonly final: boolean; readonly payload: Buffer };

/** One whole message in one frame, masked as clients must. */
export function encodeFrame(opcode: number, payload: Buffer): Buffer {
	const long = payload.length > 0xffff;
	const medium = !long && payload.length > SHORT_LENGTH_MAX;
	const head = Buffer.alloc(2 + (long ? 8 : medium ? 2 : 0));
	head[0] = FINAL | opcode;
	head[1] = MASKED | (long ? LENGTH_64 : medium ? LENGTH_16 : payload.length);
	if (long) head.writeBigUInt64BE(BigInt(payload.length), 2);
	else if (medium) head.writeUInt16BE(payload.length, 2);
	const mask = randomBytes(4);
	const masked = Buffer.from(payload);
	for (const index of masked.keys()) masked[index] = (masked[index] ?? 0) ^ (mask[index % 4] ?? 0);
	return Buffer.concat([head, mask, masked]);
}

/**
 * Takes the first frame of a server off the bytes.
 * @returns undefined while the frame is not whole
 * @throws Error for a masked or too large frame
 */
export function decodeFrame(bytes: Buffer): { readonly frame: Frame; readonly rest: Buffer } | undefined {
	const [first, second] = bytes;
	if (first === undefined || second === undefined) return undefined;
	if ((second & MASKED) !== 0) throw new Error("a server's WebSocket frame is masked");
	const short = second & 0x7f;
	const start = short === LENGTH_64 ? 10 : short === LENGTH_16 ? 4 : 2;
	if (bytes.length < start) return undefined;
	const length = short === LENGTH_64 ? Number(bytes.readBigUInt64BE(2)) : short === LENGTH_16 ? bytes.readUInt16BE(2) : short;
	if (length > FRAME_BYTES_MAX) throw new Error(`a WebSocket frame of ${length} bytes`);
	if (bytes.length < start + length) return undefined;
	const frame = { opcode: first & 0x0f, final: (first & FINAL) !== 0, payload: bytes.subarray(start, start + length) };
	return { frame, rest: bytes.subarray(start + length) };
}
