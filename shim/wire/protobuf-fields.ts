/** Messages of texts, by their fields' numbers: for the few of containerd's that need no codec of their own. */

import protobuf from "protobufjs/minimal.js";

const LENGTH_DELIMITED = 2;

/** A message of texts and bytes: the pairs of a field's number and its value, in their order; a repeated field comes several times. */
export function encodeFields(fields: readonly (readonly [field: number, value: string])[]): Uint8Array {
	const writer = protobuf.Writer.create();
	for (const [field, value] of fields) writer.uint32((field << 3) | LENGTH_DELIMITED).string(value);
	return writer.finish();
}

/** The texts, bytes and messages in a message; numbers are passed over. */
export class MessageFields {
	readonly #found = new Map<number, Uint8Array[]>();

	/** @throws Error when it is no message */
	constructor(bytes: Uint8Array) {
		const reader = protobuf.Reader.create(bytes);
		while (reader.pos < reader.len) {
			const tag = reader.uint32();
			if ((tag & 7) === LENGTH_DELIMITED) this.all(tag >>> 3).push(reader.bytes());
			else reader.skipType(tag & 7);
		}
	}

	/** Every value of a field. */
	all(field: number): Uint8Array[] {
		const known = this.#found.get(field) ?? [];
		this.#found.set(field, known);
		return known;
	}

	/** The last value of a field; empty when there is none. */
	bytes(field: number): Uint8Array {
		return this.all(field).at(-1) ?? new Uint8Array(0);
	}

	text(field: number): string {
		return textOf(this.bytes(field));
	}

	texts(field: number): string[] {
		return this.all(field).map(textOf);
	}

	message(field: number): MessageFields {
		return new MessageFields(this.bytes(field));
	}

	messages(field: number): MessageFields[] {
		return this.all(field).map((bytes) => new MessageFields(bytes));
	}
}

const textOf = (bytes: Uint8Array): string => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("utf8");
