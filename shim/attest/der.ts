/** A strict reader of DER (ITU-T X.690): what certificates and revocation lists are made of. Every length is checked against what holds it. */

import { ShimError } from "../base/errors.ts";

/** Tags that occur in certificates and revocation lists. */
export const TAG = {
	boolean: 0x01,
	integer: 0x02,
	bitString: 0x03,
	octetString: 0x04,
	oid: 0x06,
	utf8String: 0x0c,
	printableString: 0x13,
	ia5String: 0x16,
	utcTime: 0x17,
	generalizedTime: 0x18,
	sequence: 0x30,
	set: 0x31,
} as const;

/** The tag `[number]` of a constructed element, as in `[3] EXPLICIT`. */
export const contextTag = (number: number): number => 0xa0 | number;

/** One element. */
export interface DerElement {
	readonly tag: number;
	readonly content: Buffer;
	/** Tag, length and content. */
	readonly raw: Buffer;
}

/** Elements that follow each other. What it reads is named in its errors. */
export class DerReader {
	readonly #bytes: Buffer;
	readonly #what: string;
	#offset = 0;

	constructor(bytes: Buffer, what: string) {
		this.#bytes = bytes;
		this.#what = what;
	}

	/** True when all was read. */
	get atEnd(): boolean {
		return this.#offset === this.#bytes.length;
	}

	/** The tag of the next element; undefined at the end. */
	peek(): number | undefined {
		return this.#bytes[this.#offset];
	}

	/** Reads one element. @throws ShimError `attest.certificate` when it is cut, malformed, or not of the tag */
	element(tag: number): DerElement {
		const start = this.#offset;
		const found = this.#bytes[start];
		if (found === undefined) throw this.#malformed("it ends too early");
		if (found !== tag) throw this.#malformed(`byte ${start} has the tag 0x${found.toString(16)} where 0x${tag.toString(16)} belongs`);
		const { length, from } = this.#length(start + 1);
		const end = from + length;
		if (end > this.#bytes.length) throw this.#malformed(`an element of ${length} bytes at byte ${start} does not fit`);
		this.#offset = end;
		return { tag, content: this.#bytes.subarray(from, end), raw: this.#bytes.subarray(start, end) };
	}

	/** Reads a constructed element and gives a reader for what is in it. */
	inside(tag: number): DerReader {
		return new DerReader(this.element(tag).content, this.#what);
	}

	/** Reads the next element if it has the tag. */
	optional(tag: number): DerElement | undefined {
		return this.peek() === tag ? this.element(tag) : undefined;
	}

	/** Reads an object identifier, in its dotted form. */
	oid(): string {
		const { content } = this.element(TAG.oid);
		const arcs: number[] = [];
		let arc = 0;
		for (const [index, byte] of content.entries()) {
			arc = arc * 128 + (byte & 0x7f);
			if (arc > Number.MAX_SAFE_INTEGER / 128) throw this.#malformed("an object identifier is too long");
			if ((byte & 0x80) !== 0) {
				if (index === content.length - 1) throw this.#malformed("an object identifier is cut");
				continue;
			}
			if (arcs.length === 0) arcs.push(Math.min(Math.floor(arc / 40), 2), arc - 40 * Math.min(Math.floor(arc / 40), 2));
			else arcs.push(arc);
			arc = 0;
		}
		return arcs.join(".");
	}

	/** Reads a whole BIT STRING of full bytes. */
	bits(): Buffer {
		const { content } = this.element(TAG.bitString);
		if (content[0] !== 0) throw this.#malformed("a bit string is not made of full bytes");
		return content.subarray(1);
	}

	/** Reads an INTEGER from 0 to 2^31 - 1. */
	smallInteger(): number {
		const { content } = this.element(TAG.integer);
		if (content.length < 1 || content.length > 4 || ((content[0] ?? 0) & 0x80) !== 0) throw this.#malformed("a number is out of range");
		return content.readUIntBE(0, content.length);
	}

	/** Reads a Time (RFC 5280, section 4.1.2.5): UTCTime or GeneralizedTime in UTC, with seconds. */
	time(): Date {
		const short = this.optional(TAG.utcTime);
		const text = (short ?? this.element(TAG.generalizedTime)).content.toString("latin1");
		const century = short === undefined ? "" : Number(text.slice(0, 2)) < 50 ? "20" : "19";
		const match = /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/u.exec(century + text);
		const date = match === null ? undefined : new Date(`${match.slice(1, 4).join("-")}T${match.slice(4).join(":")}Z`);
		if (date === undefined || Number.isNaN(date.getTime())) throw this.#malformed(`"${text.slice(0, 20)}" is no time`);
		return date;
	}

	/** Throws unless all was read. */
	end(): void {
		if (!this.atEnd) throw this.#malformed(`${this.#bytes.length - this.#offset} bytes follow where nothing belongs`);
	}

	#length(at: number): { length: number; from: number } {
		const first = this.#bytes[at];
		if (first === undefined) throw this.#malformed("it ends too early");
		if (first < 0x80) return { length: first, from: at + 1 };
		const count = first & 0x7f;
		const octets = this.#bytes.subarray(at + 1, at + 1 + count);
		if (count < 1 || count > 4 || octets.length !== count) throw this.#malformed(`the length at byte ${at} is malformed`);
		const length = octets.readUIntBE(0, count);
		if (length < 0x80 || (count > 1 && octets[0] === 0)) throw this.#malformed(`the length at byte ${at} is not in its shortest form`);
		return { length, from: at + 1 + count };
	}

	#malformed(how: string): ShimError {
		return new ShimError("attest.certificate", `${this.#what} is no DER: ${how}`);
	}
}
