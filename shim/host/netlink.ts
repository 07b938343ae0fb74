/** The kernel's routing messages (netlink(7), rtnetlink(7)) as bytes: built, taken apart, exchanged. Numbers are the machine's, little-endian on x86. */

import { getSystemErrorMap } from "node:util";

import { closeFd } from "../../native/src/file.ts";
import { netlinkExchange, netnsNetlink } from "../../native/src/netns.ts";

const HEADER_BYTES = 16;
const ATTRIBUTE_HEADER_BYTES = 4;
/** An attribute's type without the flags for nested and big-endian ones. */
const TYPE_MASK = 0x3fff;
const NLMSGERR_ATTR_MSG = 1;
/** nlmsgerr: the error and the header of the refused message. */
const REFUSAL_BYTES = 4 + HEADER_BYTES;
const EINTR = -4;
const DUMP_ATTEMPTS = 5;

/** NLM_F_* of linux/netlink.h. */
export const FLAG = { REQUEST: 0x1, ACK: 0x4, DUMP: 0x300, REPLACE: 0x100, EXCL: 0x200, CREATE: 0x400 } as const;

/** Rounds up to the alignment of netlink. */
const aligned = (length: number): number => (length + 3) & ~3;

/** A request: what to do, its fixed structure, its attributes. */
export interface Request {
	/** RTM_* of linux/rtnetlink.h. */
	readonly type: number;
	/** `FLAG`, added up, besides REQUEST. */
	readonly flags: number;
	readonly body: Buffer;
}

/** One attribute as bytes; several are put together with `Buffer.concat`. */
export function attribute(type: number, value: Buffer): Buffer {
	const length = ATTRIBUTE_HEADER_BYTES + value.byteLength;
	const bytes = Buffer.alloc(aligned(length));
	bytes.writeUInt16LE(length, 0);
	bytes.writeUInt16LE(type, 2);
	value.copy(bytes, ATTRIBUTE_HEADER_BYTES);
	return bytes;
}

/** An attribute that holds a 32-bit number. */
export function number32(type: number, value: number): Buffer {
	const bytes = Buffer.alloc(4);
	bytes.writeUInt32LE(value >>> 0);
	return attribute(type, bytes);
}

/** An attribute that holds a text with its final NUL. */
export function text(type: number, value: string): Buffer {
	return attribute(type, Buffer.from(`${value}\0`, "utf8"));
}

/** An attribute that holds attributes. */
export function nested(type: number, ...attributes: readonly Buffer[]): Buffer {
	return attribute(type, Buffer.concat(attributes));
}

/** A message of an answer: its type, its fixed structure and its attributes by type (of equal ones the last). */
export class Message {
	readonly type: number;
	readonly #payload: Buffer;

	/** @param payload what follows the message's header */
	constructor(type: number, payload: Buffer) {
		this.type = type;
		this.#payload = payload;
	}

	/** A byte of the fixed structure; 0 when it is not there. */
	byte(offset: number): number {
		return this.#payload[offset] ?? 0;
	}

	/** A 16-bit number of the fixed structure; 0 when it is not there. */
	half(offset: number): number {
		return this.#payload.byteLength < offset + 2 ? 0 : this.#payload.readUInt16LE(offset);
	}

	/** A 32-bit number of the fixed structure; 0 when it is not there. */
	word(offset: number): number {
		return this.#payload.byteLength < offset + 4 ? 0 : this.#payload.readUInt32LE(offset);
	}

	/** The attributes behind a fixed structure of `fixedBytes`. */
	attributes(fixedBytes: number): Attributes {
		return new Attributes(this.#payload.subarray(aligned(fixedBytes)));
	}
}

/** A list of attributes. Damaged ones end the list. */
export class Attributes {
	readonly #values = new Map<number, Buffer>();

	constructor(bytes: Buffer) {
		for (let at = 0; at + ATTRIBUTE_HEADER_BYTES <= bytes.byteLength; ) {
			const length = bytes.readUInt16LE(at);
			if (length < ATTRIBUTE_HEADER_BYTES || at + length > bytes.byteLength) return;
			this.#values.set(bytes.readUInt16LE(at + 2) & TYPE_MASK, bytes.subarray(at + ATTRIBUTE_HEADER_BYTES, at + length));
			at += aligned(length);
		}
	}

	bytes(type: number): Buffer | undefined {
		return this.#values.get(type);
	}

	number(type: number): number | undefined {
		const value = this.#values.get(type);
		return value === undefined || value.byteLength < 4 ? undefined : value.readUInt32LE();
	}

	text(type: number): string | undefined {
		return this.#values.get(type)?.toString("utf8").replace(/\0.*$/su, "");
	}

	nested(type: number): Attributes {
		return new Attributes(this.#values.get(type) ?? Buffer.alloc(0));
	}
}

/** The bytes of a request with its header. */
export function encodeRequest(request: Request, sequence: number): Buffer {
	const header = Buffer.alloc(HEADER_BYTES);
	header.writeUInt32LE(HEADER_BYTES + request.body.byteLength, 0);
	header.writeUInt16LE(request.type, 4);
	header.writeUInt16LE(request.flags | FLAG.REQUEST, 6);
	header.writeUInt32LE(sequence, 8);
	return Buffer.concat([header, request.body]);
}

/** The messages in a part of a netlink stream. */
export function decodeMessages(bytes: Buffer): Message[] {
	const messages: Message[] = [];
	for (let at = 0; at + HEADER_BYTES <= bytes.byteLength; ) {
		const length = bytes.readUInt32LE(at);
		if (length < HEADER_BYTES || at + length > bytes.byteLength) break;
		messages.push(new Message(bytes.readUInt16LE(at + 4), bytes.subarray(at + HEADER_BYTES, at + length)));
		at += aligned(length);
	}
	return messages;
}

/** The kernel refused a request. `code` is the errno's name; the message has the kernel's own words where it gave some. */
export class NetlinkError extends Error {
	override readonly name = "NetlinkError";
	readonly code: string;

	/** @param errno negative, as the kernel answers */
	constructor(what: string, errno: number, words: string) {
		const [code, text] = getSystemErrorMap().get(errno) ?? [`E${-errno}`, "unknown error"];
		super(`${what}: ${words === "" ? text : words} (${code})`);
		this.code = code;
	}
}

/** The kernel's words in a refusal (NLMSGERR_ATTR_MSG), if it has any. */
function wordsOf(refusal: Buffer): string {
	return new Attributes(refusal.subarray(HEADER_BYTES + REFUSAL_BYTES)).text(NLMSGERR_ATTR_MSG) ?? "";
}

/** A netlink socket in a network namespace. Whoever opens it closes it. */
export class Netlink {
	readonly #fd: number;
	#sequence = 0;
	#closed = false;

	private constructor(fd: number) {
		this.#fd = fd;
	}

	/**
	 * Opens a socket in the namespace that the descriptor `ns` means.
	 * @throws SystemError
	 */
	static async open(ns: number): Promise<Netlink> {
		return new Netlink(await netnsNetlink(ns, 0));
	}

	/**
	 * Makes changes in their order, the rest of them not when one is refused.
	 * @param what is being done, for the message: `redirect eth0`
	 * @throws NetlinkError
	 */
	async change(what: string, ...requests: readonly Request[]): Promise<void> {
		const messages = requests.map((request) => this.#encode({ ...request, flags: request.flags | FLAG.ACK }));
		const { error, refusal } = await netlinkExchange(this.#fd, messages);
		if (error !== 0) throw new NetlinkError(what, error, wordsOf(refusal));
	}

	/**
	 * Reads lists, each whole: one that changed meanwhile is read again.
	 * @returns the messages of each list
	 * @throws NetlinkError
	 */
	async dump(what: string, ...requests: readonly Request[]): Promise<Message[][]> {
		for (let attempt = 1; ; attempt++) {
			const messages = requests.map((request) => this.#encode({ ...request, flags: request.flags | FLAG.DUMP }));
			const { error, refusal, answers } = await netlinkExchange(this.#fd, messages);
			if (error === 0) return answers.map(decodeMessages);
			if (error !== EINTR || attempt === DUMP_ATTEMPTS) throw new NetlinkError(what, error, wordsOf(refusal));
		}
	}

	/** Closes the socket. Safe to call twice. */
	close(): void {
		if (this.#closed) return;
		this.#closed = true;
		closeFd(this.#fd);
	}

	#encode(request: Request): Buffer {
		this.#sequence += 1;
		return encodeRequest(request, this.#sequence);
	}
}
