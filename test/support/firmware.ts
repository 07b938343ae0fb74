/** Images that tests launch: OVMF-like and IGVM files with random contents from a seed, written by the formats' own tables. */

import { crc32 } from "../../shim/attest/measure/crc32.ts";

import { randomBytes, randomSource } from "./random.ts";

export const PAGE = 4096;

const guid = (text: string): Buffer => {
	const [first = "", second = "", third = "", ...rest] = text.split("-");
	const reversed = (hex: string): Buffer => Buffer.from(hex, "hex").reverse();
	return Buffer.concat([reversed(first), reversed(second), reversed(third), Buffer.from(rest.join(""), "hex")]);
};

/** A section of OVMF's SEV metadata: address, bytes, type. */
export type Section = readonly [address: number, bytes: number, type: number];

export const SECTIONS: readonly Section[] = [
	[0x800000, 0x9000, 1],
	[0x80d000, 0x1000, 2],
	[0x80e000, 0x1000, 3],
	[0x80a000, 0x3000, 1],
	[0x811000, 0x1000, 4],
	[0x810000, 0x1000, 0x10],
	[0x812000, 0xe000, 1],
];

export interface OvmfSpec {
	readonly seed: number;
	readonly pages?: number;
	readonly sections?: readonly Section[];
	/** Where the table of kernel hashes is; 0 for none. */
	readonly hashTable?: number;
	readonly resetAddress?: number;
}

/** An image with random contents and the table of GUIDs at its end. */
export function makeOvmf({ seed, pages = 6, sections = SECTIONS, hashTable = 0x810c00, resetAddress = 0x80b004 }: OvmfSpec): Buffer {
	const image = randomBytes(randomSource(seed), pages * PAGE);
	const metadata = Buffer.alloc(16 + sections.length * 12);
	metadata.write("ASEV");
	metadata.writeUInt32LE(metadata.length, 4);
	metadata.writeUInt32LE(1, 8);
	metadata.writeUInt32LE(sections.length, 12);
	for (const [index, numbers] of sections.entries())
		numbers.forEach((number, at) => metadata.writeUInt32LE(number, 16 + index * 12 + at * 4));
	const metadataDistance = 2048;
	metadata.copy(image, image.length - metadataDistance);
	const word = (value: number): Buffer => {
		const bytes = Buffer.alloc(4);
		bytes.writeUInt32LE(value);
		return bytes;
	};
	const entry = (name: string, data: Buffer): Buffer => {
		const size = Buffer.alloc(2);
		size.writeUInt16LE(data.length + 18);
		return Buffer.concat([data, size, guid(name)]);
	};
	const entries = Buffer.concat([
		entry("7255371f-3a3b-4b04-927b-1da6efa8d454", Buffer.concat([word(hashTable), word(0x400)])),
		entry("00f771de-1a7e-4fcb-890e-68c77e2fb44e", word(resetAddress)),
		entry("4c2eb361-7d9b-4cc3-8081-127c90d3d294", Buffer.concat([word(0x80c000), word(0xc00)])),
		entry("dc886566-984a-4798-a75e-5585a7bf67cc", word(metadataDistance)),
	]);
	const footer = Buffer.concat([Buffer.alloc(2), guid("96b582de-1fb2-45f7-baea-a366c55a082d")]);
	footer.writeUInt16LE(entries.length + footer.length);
	const table = Buffer.concat([entries, footer]);
	table.copy(image, image.length - 32 - table.length);
	return image;
}

/** A directive, or an initialization header, of an IGVM file: type, fields, and the page that it refers to. */
export interface IgvmHeader {
	readonly type: number;
	readonly body: Buffer;
	/** A page of file data, and where in the body its offset stands. */
	readonly data?: { readonly page: Buffer; readonly at: number };
}

function body(length: number, write: (bytes: Buffer) => void): Buffer {
	const bytes = Buffer.alloc(length);
	write(bytes);
	return bytes;
}

/** Pages: type 0 normal, 1 secrets, 2 CPUID, 3 CPUID XF; flags: 1 of 2 MiB, 2 unmeasured, 4 shared. */
export function igvmPage(address: number, data?: Buffer, options: { type?: number; flags?: number; mask?: number } = {}): IgvmHeader {
	const bytes = body(24, (to) => {
		to.writeBigUInt64LE(BigInt(address), 0);
		to.writeUInt32LE(options.mask ?? 1, 8);
		to.writeUInt32LE(options.flags ?? 0, 16);
		to.writeUInt16LE(options.type ?? 0, 20);
	});
	return { type: 0x302, body: bytes, ...(data === undefined ? {} : { data: { page: data, at: 12 } }) };
}

export const igvmProcessor = (index: number, vmsa: Buffer, address = 0xffff_ffff_f000n): IgvmHeader => ({
	type: 0x304,
	body: body(20, (to) => {
		to.writeBigUInt64LE(address, 0);
		to.writeUInt32LE(1, 8);
		to.writeUInt16LE(index, 16);
	}),
	data: { page: vmsa, at: 12 },
});

export const igvmArea = (index: number, bytes: number): IgvmHeader => ({
	type: 0x301,
	body: body(16, (to) => {
		to.writeBigUInt64LE(BigInt(bytes), 0);
		to.writeUInt32LE(index, 8);
	}),
});

export const igvmInsert = (index: number, address: number): IgvmHeader => ({
	type: 0x303,
	body: body(16, (to) => {
		to.writeBigUInt64LE(BigInt(address), 0);
		to.writeUInt32LE(1, 8);
		to.writeUInt32LE(index, 12);
	}),
});

/** A directive that fills a parameter area: 0x307 processors, 0x30c memory map, 0x30e command line. */
export const igvmParameter = (type: number, index: number, offset = 0): IgvmHeader => ({
	type,
	body: body(8, (to) => {
		to.writeUInt32LE(index, 0);
		to.writeUInt32LE(offset, 4);
	}),
});

export const igvmRequiredMemory = (address: number, bytes: number): IgvmHeader => ({
	type: 0x305,
	body: body(24, (to) => {
		to.writeBigUInt64LE(BigInt(address), 0);
		to.writeUInt32LE(1, 8);
		to.writeUInt32LE(bytes, 12);
	}),
});

export const igvmPlatform = (type = 2, mask = 1): IgvmHeader => ({
	type: 1,
	body: body(16, (to) => {
		to.writeUInt32LE(mask, 0);
		to.writeUInt8(type, 5);
		to.writeUInt16LE(1, 6);
	}),
});

export const igvmPolicy = (policy: bigint, mask = 1): IgvmHeader => ({
	type: 0x101,
	body: body(16, (to) => {
		to.writeBigUInt64LE(policy, 0);
		to.writeUInt32LE(mask, 8);
	}),
});

/** A whole file: fixed header with its checksum, the headers, the data of their pages. */
export function makeIgvm(headers: readonly IgvmHeader[], version: 1 | 2 = 1): Buffer {
	const fixedBytes = version === 1 ? 24 : 32;
	const sizes = headers.map((header) => 8 + Math.ceil(header.body.length / 8) * 8);
	const variableBytes = sizes.reduce((sum, size) => sum + size, 0);
	const variable = Buffer.alloc(variableBytes);
	const pages: Buffer[] = [];
	let at = 0;
	for (const [index, { type, body: content, data }] of headers.entries()) {
		variable.writeUInt32LE(type, at);
		variable.writeUInt32LE(content.length, at + 4);
		content.copy(variable, at + 8);
		if (data !== undefined) {
			variable.writeUInt32LE(fixedBytes + variableBytes + pages.length * PAGE, at + 8 + data.at);
			pages.push(data.page);
		}
		at += sizes[index] ?? 0;
	}
	const fixed = Buffer.alloc(fixedBytes);
	fixed.write("IGVM");
	fixed.writeUInt32LE(version, 4);
	fixed.writeUInt32LE(fixedBytes, 8);
	fixed.writeUInt32LE(variableBytes, 12);
	fixed.writeUInt32LE(fixedBytes + variableBytes + pages.length * PAGE, 16);
	if (version === 2) fixed.writeUInt32LE(PAGE, 28);
	fixed.writeUInt32LE(crc32(fixed, variable), 20);
	return Buffer.concat([fixed, variable, ...pages]);
}
