/**
 * IGVM files, as far as SEV-SNP needs them: fixed header, platforms, guest policy, and the directives in their order. Format: the crate `igvm_defs`
 * (Microsoft), versions 1 and 2 of the fixed header.
 */

import { ShimError } from "../../base/errors.ts";
import { crc32 } from "./crc32.ts";
import { PAGE_BYTES } from "./launch-digest.ts";

/** A directive that takes part in a launch under SEV-SNP. */
export type IgvmDirective =
	| {
			readonly kind: "page";
			readonly address: bigint;
			readonly data: Buffer | undefined;
			readonly type: IgvmPageType;
			readonly unmeasured: boolean;
			readonly shared: boolean;
	  }
	| { readonly kind: "parameter-area"; readonly index: number; readonly bytes: number }
	| { readonly kind: "parameter-insert"; readonly index: number; readonly address: bigint }
	| { readonly kind: "processor"; readonly address: bigint; readonly index: number; readonly vmsa: Buffer }
	| { readonly kind: "id-block"; readonly block: IgvmIdBlock }
	/** Fills a parameter area at the start, or reserves memory: nothing of it is measured. */
	| { readonly kind: "unmeasured"; readonly name: string }
	/** Not part of a launch that is known here. */
	| { readonly kind: "other"; readonly name: string };

/** What a page holds. */
export type IgvmPageType = "normal" | "secrets" | "cpuid" | "cpuid-xf";

/** The ID block of a file, in its own layout: keys have eight bytes before their numbers, signatures none behind. */
export interface IgvmIdBlock {
	readonly authorKeyEnabled: boolean;
	readonly measurement: Buffer;
	readonly familyId: Buffer;
	readonly imageId: Buffer;
	readonly version: number;
	readonly guestSvn: number;
	/** r and s, 72 bytes each. */
	readonly signature: Buffer;
	/** Curve, then x and y, 72 bytes each. */
	readonly idKey: Buffer;
	readonly authorSignature: Buffer;
	readonly authorKey: Buffer;
}

/** A file, read for SEV-SNP. */
export interface Igvm {
	readonly source: string;
	/** The guest policy; undefined when the file has none. */
	readonly guestPolicy: bigint | undefined;
	readonly directives: readonly IgvmDirective[];
}

const MAGIC = "IGVM";
const HEADER_BYTES: Readonly<Record<number, number>> = { 1: 24, 2: 32 };
const CHECKSUM_OFFSET = 20;
const PLATFORM_SNP = 2;
const MAX_DIRECTIVES = 1_000_000;
const MAX_PARAMETER_BYTES = 64 * 1024 * 1024;

const TYPE = { platform: 0x1, policy: 0x101, area: 0x301, page: 0x302, insert: 0x303, processor: 0x304, idBlock: 0x30b } as const;
const PLATFORM_RANGE = { first: 0x1, last: 0x100 } as const;
const INITIALIZATION_RANGE = { first: 0x101, last: 0x200 } as const;

/** Directives by name: those of which nothing is measured, and those that have no place under SNP. */
const UNMEASURED: Readonly<Record<number, string>> = {
	0x305: "required memory",
	0x307: "number of processors",
	0x30c: "memory map",
	0x30e: "command line",
};
const OTHER: Readonly<Record<number, string>> = {
	0x308: "SRAT",
	0x309: "MADT",
	0x30a: "MMIO ranges",
	0x30d: "error range",
	0x30f: "SLIT",
	0x310: "PPTT",
	0x311: "VBS measurement",
	0x312: "device tree",
	0x313: "environment",
};
const PAGE_TYPES: Readonly<Record<number, IgvmPageType>> = { 0: "normal", 1: "secrets", 2: "cpuid", 3: "cpuid-xf" };
const FLAG = { large: 1, unmeasured: 2, shared: 4 } as const;

/** Structures by type: their length. */
const LENGTHS: Readonly<Record<number, number>> = {
	[TYPE.platform]: 16,
	[TYPE.policy]: 16,
	[TYPE.area]: 16,
	[TYPE.page]: 24,
	[TYPE.insert]: 16,
	[TYPE.processor]: 20,
	[TYPE.idBlock]: 696,
};

interface Header {
	readonly type: number;
	readonly body: Buffer;
}

type Problem = (text: string) => ShimError;

/** Reads a file. @throws ShimError `measure.input` that says what is wrong with it */
export function parseIgvm(file: Buffer, source: string): Igvm {
	const problem: Problem = (text) =>
		new ShimError("measure.input", `${source}: ${text}`, { remedy: "give an IGVM file for SEV-SNP, whole" });
	const headers = readHeaders(file, problem);
	const platforms = headers.filter(({ type }) => type === TYPE.platform);
	const platform = platforms.find(({ body }) => body[5] === PLATFORM_SNP);
	if (platform === undefined) throw problem("it is for no platform SEV-SNP");
	const mask = platform.body.readUInt32LE(0);
	const policy = headers.find(({ type, body }) => type === TYPE.policy && (body.readUInt32LE(8) & mask) !== 0);
	const directives = headers
		.filter(({ type }) => type > INITIALIZATION_RANGE.last)
		.flatMap((header) => {
			const directive = readDirective(header, mask, file, problem);
			return directive === undefined ? [] : [directive];
		});
	checkAreas(directives, problem);
	return { source, guestPolicy: policy?.body.readBigUInt64LE(0), directives };
}

/** Checks the fixed header (version, bounds, CRC-32) and cuts the variable ones apart: type, length, content, filled up to eight bytes. */
function readHeaders(file: Buffer, problem: Problem): Header[] {
	if (file.length < 24 || file.subarray(0, 4).toString("latin1") !== MAGIC) throw problem("it is no IGVM file");
	const version = file.readUInt32LE(4);
	const fixed = HEADER_BYTES[version];
	if (fixed === undefined) throw problem(`its format version is ${version}; known are 1 and 2`);
	const [offset, size, total] = [file.readUInt32LE(8), file.readUInt32LE(12), file.readUInt32LE(16)];
	if (total !== file.length) throw problem(`it says that it has ${total} bytes, and has ${file.length}`);
	if (offset < fixed || offset % 8 !== 0 || offset + size > total) throw problem("its headers lead out of it");
	if (version === 2 && (file.readUInt32LE(24) !== 0 || file.readUInt32LE(28) !== PAGE_BYTES))
		throw problem("it is not for x86-64 with pages of 4 KiB");
	const head = Buffer.from(file.subarray(0, fixed));
	head.writeUInt32LE(0, CHECKSUM_OFFSET);
	const variable = file.subarray(offset, offset + size);
	if (crc32(head, variable) !== file.readUInt32LE(CHECKSUM_OFFSET)) throw problem("its checksum is wrong");
	return cutHeaders(variable, problem);
}

function cutHeaders(variable: Buffer, problem: Problem): Header[] {
	const headers: Header[] = [];
	let stage = 0;
	for (let at = 0; at < variable.length; ) {
		if (at + 8 > variable.length) throw problem("its last header is cut");
		const [type, length] = [variable.readUInt32LE(at), variable.readUInt32LE(at + 4)];
		const body = variable.subarray(at + 8, at + 8 + length);
		if (body.length !== length) throw problem("its last header is cut");
		const expected = LENGTHS[type];
		if (expected !== undefined && expected !== length)
			throw problem(`a header of type 0x${type.toString(16)} has ${length} bytes, not ${expected}`);
		const next = type <= PLATFORM_RANGE.last ? 0 : type <= INITIALIZATION_RANGE.last ? 1 : 2;
		if (next < stage) throw problem(`a header of type 0x${type.toString(16)} stands behind those that must follow it`);
		stage = next;
		headers.push({ type, body });
		if (headers.length > MAX_DIRECTIVES) throw problem(`it has more than ${MAX_DIRECTIVES} headers`);
		at += 8 + Math.ceil(length / 8) * 8;
	}
	return headers;
}

/** @returns undefined for a directive of another platform */
function readDirective({ type, body }: Header, mask: number, file: Buffer, problem: Problem): IgvmDirective | undefined {
	const page = (offset: number): Buffer | undefined => {
		if (offset === 0) return undefined;
		const data = file.subarray(offset, offset + PAGE_BYTES);
		if (data.length !== PAGE_BYTES) throw problem(`a page's data at ${offset} leads out of it`);
		return data;
	};
	const others = (offset: number): boolean => (body.readUInt32LE(offset) & mask) === 0;
	const aligned = (address: bigint): bigint => {
		if (address % BigInt(PAGE_BYTES) !== 0n) throw problem(`the address 0x${address.toString(16)} is not that of a page`);
		return address;
	};
	switch (type) {
		case TYPE.page:
			return others(8) ? undefined : readPage(body, aligned, page, problem);
		case TYPE.area:
			return { kind: "parameter-area", index: body.readUInt32LE(8), bytes: areaBytes(body, problem) };
		case TYPE.insert:
			return others(8) ? undefined : { kind: "parameter-insert", address: aligned(body.readBigUInt64LE(0)), index: body.readUInt32LE(12) };
		case TYPE.processor: {
			if (others(8)) return undefined;
			const vmsa = page(body.readUInt32LE(12));
			if (vmsa === undefined) throw problem("a processor's VMSA has no data");
			return { kind: "processor", address: aligned(body.readBigUInt64LE(0)), index: body.readUInt16LE(16), vmsa };
		}
		case TYPE.idBlock:
			return others(0) ? undefined : { kind: "id-block", block: readIdBlock(body) };
		default: {
			const unmeasured = UNMEASURED[type];
			if (unmeasured !== undefined) return { kind: "unmeasured", name: unmeasured };
			return { kind: "other", name: OTHER[type] ?? `0x${type.toString(16)}` };
		}
	}
}

function readPage(
	body: Buffer,
	aligned: (address: bigint) => bigint,
	page: (offset: number) => Buffer | undefined,
	problem: Problem,
): IgvmDirective {
	const flags = body.readUInt32LE(16);
	const type = PAGE_TYPES[body.readUInt16LE(20)];
	if (type === undefined) throw problem(`it has a page of the unknown type ${body.readUInt16LE(20)}`);
	if ((flags & FLAG.large) !== 0) throw problem("it has pages of 2 MiB, which no launcher takes yet");
	return {
		kind: "page",
		address: aligned(body.readBigUInt64LE(0)),
		data: page(body.readUInt32LE(12)),
		type,
		unmeasured: (flags & FLAG.unmeasured) !== 0,
		shared: (flags & FLAG.shared) !== 0,
	};
}

function areaBytes(body: Buffer, problem: Problem): number {
	const bytes = body.readBigUInt64LE(0);
	if (bytes % BigInt(PAGE_BYTES) !== 0n || bytes > MAX_PARAMETER_BYTES) throw problem(`it has a parameter area of ${bytes} bytes`);
	return Number(bytes);
}

/** IGVM_VHS_SNP_ID_BLOCK: a key is curve, four reserved bytes, x, y. */
function readIdBlock(body: Buffer): IgvmIdBlock {
	const key = (offset: number): Buffer => Buffer.concat([body.subarray(offset, offset + 4), body.subarray(offset + 8, offset + 152)]);
	return {
		authorKeyEnabled: body[4] !== 0,
		measurement: body.subarray(8, 56),
		familyId: body.subarray(56, 72),
		imageId: body.subarray(72, 88),
		version: body.readUInt32LE(88),
		guestSvn: body.readUInt32LE(92),
		signature: body.subarray(104, 248),
		idKey: key(248),
		authorSignature: body.subarray(400, 544),
		authorKey: key(544),
	};
}

/** Every area is declared once, before it is inserted once. */
function checkAreas(directives: readonly IgvmDirective[], problem: Problem): void {
	const free = new Set<number>();
	const seen = new Set<number>();
	for (const directive of directives) {
		if (directive.kind === "parameter-area") {
			if (seen.has(directive.index)) throw problem(`the parameter area ${directive.index} is declared twice`);
			seen.add(directive.index);
			free.add(directive.index);
		}
		if (directive.kind === "parameter-insert" && !free.delete(directive.index)) {
			throw problem(
				`the parameter area ${directive.index} is inserted ${seen.has(directive.index) ? "twice" : "without having been declared"}`,
			);
		}
	}
}
