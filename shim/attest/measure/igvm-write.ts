/** Puts a signed ID block into an IGVM file: the only way by which Cloud Hypervisor takes one. */

import { ShimError } from "../../base/errors.ts";
import { crc32 } from "./crc32.ts";
import { ID_AUTHENTICATION } from "./id-block.ts";
import type { IdBlock } from "./id-block.ts";
import { parseIgvm } from "./igvm.ts";

const HEADER_BYTES: Readonly<Record<number, number>> = { 1: 24, 2: 32 };
const ID_BLOCK_TYPE = 0x30b;
const ID_BLOCK_BYTES = 696;
const PLATFORM_TYPE = 1;
const PLATFORM_SNP = 2;
const NUMBERS_BYTES = 144;

/** Headers that hold an offset into the file, and where in them: parameter areas, pages, processors, CoRIM documents and signatures. */
const FILE_OFFSETS: Readonly<Record<number, number>> = { 0x301: 12, 0x302: 12, 0x304: 12, 0x104: 8, 0x105: 8 };

/**
 * A copy of the file with the ID block as its last directive. The launch digest stays the same.
 * @param file a sound IGVM file for SEV-SNP
 * @throws ShimError `measure.input` when it has an ID block already, or is damaged
 */
export function addIdBlock(file: Buffer, block: IdBlock, source: string): Buffer {
	if (parseIgvm(file, source).directives.some(({ kind }) => kind === "id-block")) {
		throw new ShimError("measure.input", `${source} has an ID block already`, { remedy: "give the file as it was before" });
	}
	const fixedBytes = HEADER_BYTES[file.readUInt32LE(4)] ?? 0;
	const [offset, size] = [file.readUInt32LE(8), file.readUInt32LE(12)];
	const end = offset + size;
	const added = 8 + ID_BLOCK_BYTES;
	const head = Buffer.from(file.subarray(0, end));
	const mask = shiftOffsets(head.subarray(offset), end, added);
	head.writeUInt32LE(size + added, 12);
	head.writeUInt32LE(file.length + added, 16);
	head.writeUInt32LE(0, 20);
	const whole = Buffer.concat([head, idBlockHeader(block, mask), file.subarray(end)]);
	whole.writeUInt32LE(crc32(whole.subarray(0, fixedBytes), whole.subarray(offset, end + added)), 20);
	return whole;
}

/** Moves every offset of data that lies behind the headers. @returns the mask of the platform SEV-SNP */
function shiftOffsets(headers: Buffer, dataStart: number, by: number): number {
	let mask = 0;
	for (let at = 0; at < headers.length; ) {
		const [type, length] = [headers.readUInt32LE(at), headers.readUInt32LE(at + 4)];
		const body = headers.subarray(at + 8, at + 8 + length);
		const place = FILE_OFFSETS[type];
		const offset = place === undefined ? 0 : body.readUInt32LE(place);
		if (place !== undefined && offset >= dataStart) body.writeUInt32LE(offset + by, place);
		if (type === PLATFORM_TYPE && body[5] === PLATFORM_SNP) mask = body.readUInt32LE(0);
		at += 8 + Math.ceil(length / 8) * 8;
	}
	return mask;
}

/** IGVM_VHS_SNP_ID_BLOCK with its type and length. */
function idBlockHeader({ block, authentication, authorKeyDigest }: IdBlock, mask: number): Buffer {
	const header = Buffer.alloc(8 + ID_BLOCK_BYTES);
	header.writeUInt32LE(ID_BLOCK_TYPE, 0);
	header.writeUInt32LE(ID_BLOCK_BYTES, 4);
	const body = header.subarray(8);
	body.writeUInt32LE(mask, 0);
	body.writeUInt8(authorKeyDigest === undefined ? 0 : 1, 4);
	block.copy(body, 8, 0, 88);
	authentication.copy(body, 96, 0, 8);
	const key = (from: number, to: number): void => {
		authentication.copy(body, to, from, from + 4);
		authentication.copy(body, to + 8, from + 4, from + 4 + NUMBERS_BYTES);
	};
	authentication.copy(body, 104, ID_AUTHENTICATION.blockSignature, ID_AUTHENTICATION.blockSignature + NUMBERS_BYTES);
	key(ID_AUTHENTICATION.idKey, 248);
	authentication.copy(body, 400, ID_AUTHENTICATION.idKeySignature, ID_AUTHENTICATION.idKeySignature + NUMBERS_BYTES);
	key(ID_AUTHENTICATION.authorKey, 544);
	return header;
}
