/**
 * What an OVMF image says about its launch: a table of GUIDs 32 bytes before its end, read backwards, and in it the SEV metadata (edk2, OvmfPkg/ResetVector:
 * Ia16/ResetVectorVtf0.asm, X64/OvmfSevMetadata.asm).
 */

import { ShimError } from "../../base/errors.ts";
import { guidBytes } from "./guid.ts";
import { PAGE_BYTES } from "./launch-digest.ts";

/** What a section of the metadata is for. */
export type OvmfSectionKind = "memory" | "secrets" | "cpuid" | "svsm-calling-area" | "kernel-hashes";

/** A region that is given to the firmware besides the image. */
export interface OvmfSection {
	readonly kind: OvmfSectionKind;
	readonly address: number;
	readonly bytes: number;
}

/** An OVMF image, read. */
export interface Ovmf {
	readonly image: Buffer;
	/** Where the image begins: it ends at 4 GiB. */
	readonly address: number;
	readonly sections: readonly OvmfSection[];
	/** Where all processors but the first start. */
	readonly resetAddress: number;
	/** Where the table of kernel hashes belongs; undefined for an OVMF that knows none. */
	readonly hashTableAddress: number | undefined;
}

const GUID = {
	footer: "96b582de-1fb2-45f7-baea-a366c55a082d",
	hashTable: "7255371f-3a3b-4b04-927b-1da6efa8d454",
	resetBlock: "00f771de-1a7e-4fcb-890e-68c77e2fb44e",
	metadata: "dc886566-984a-4798-a75e-5585a7bf67cc",
} as const;

const KINDS: Readonly<Record<number, OvmfSectionKind>> = {
	1: "memory",
	2: "secrets",
	3: "cpuid",
	4: "svsm-calling-area",
	16: "kernel-hashes",
};
const GUID_BYTES = 16;
const ENTRY_HEADER_BYTES = GUID_BYTES + 2;
const FOOTER_DISTANCE = 32;
const METADATA_HEADER_BYTES = 16;
const SECTION_BYTES = 12;
const FOUR_GIB = 0x1_0000_0000;
const MAX_SECTIONS = 256;
const MAX_SECTION_BYTES = 64 * 1024 * 1024;

/** Reads an image. @throws ShimError `measure.input` when it is none that can be launched under SNP */
export function parseOvmf(image: Buffer, source: string): Ovmf {
	const problem = (text: string): ShimError =>
		new ShimError("measure.input", `${source} ${text}`, {
			remedy: "give an OVMF that was built for SEV-SNP (OvmfPkg/AmdSev, or OvmfX64 since edk2-stable202205)",
		});
	if (image.length === 0 || image.length % PAGE_BYTES !== 0) throw problem(`has ${image.length} bytes, not a multiple of ${PAGE_BYTES}`);
	const table = footerTable(image, problem);
	const word = (guid: string): number | undefined => {
		const data = table.get(guidBytes(guid).toString("hex"));
		if (data !== undefined && data.length < 4) throw problem(`has a cut entry ${guid}`);
		return data?.readUInt32LE(0);
	};
	const metadata = word(GUID.metadata);
	if (metadata === undefined) throw problem("has no SEV metadata");
	const resetAddress = word(GUID.resetBlock);
	if (resetAddress === undefined) throw problem("does not say where further processors start");
	const hashTable = word(GUID.hashTable);
	return {
		image,
		address: FOUR_GIB - image.length,
		sections: readSections(image, metadata, problem),
		resetAddress,
		hashTableAddress: hashTable === 0 ? undefined : hashTable,
	};
}

type Problem = (text: string) => ShimError;

/** Entries end with their size and GUID; the last one is the footer, whose size is that of all. */
function footerTable(image: Buffer, problem: Problem): Map<string, Buffer> {
	const table = new Map<string, Buffer>();
	const footer = image.length - FOOTER_DISTANCE - ENTRY_HEADER_BYTES;
	if (!image.subarray(footer + 2, footer + ENTRY_HEADER_BYTES).equals(guidBytes(GUID.footer)))
		throw problem("has no table of GUIDs at its end");
	const start = footer + ENTRY_HEADER_BYTES - image.readUInt16LE(footer);
	if (start < 0 || start > footer) throw problem("has a damaged table of GUIDs");
	for (let end = footer; end - start >= ENTRY_HEADER_BYTES; ) {
		const header = end - ENTRY_HEADER_BYTES;
		const size = image.readUInt16LE(header);
		if (size < ENTRY_HEADER_BYTES || end - size < start) throw problem("has a damaged table of GUIDs");
		table.set(image.subarray(header + 2, end).toString("hex"), image.subarray(end - size, header));
		end -= size;
	}
	return table;
}

function readSections(image: Buffer, distance: number, problem: Problem): OvmfSection[] {
	const start = image.length - distance;
	if (start < 0 || start + METADATA_HEADER_BYTES > image.length || image.subarray(start, start + 4).toString("latin1") !== "ASEV") {
		throw problem("has no SEV metadata where it says");
	}
	const [version, count] = [image.readUInt32LE(start + 8), image.readUInt32LE(start + 12)];
	if (version !== 1) throw problem(`has SEV metadata of version ${version}; known is 1`);
	if (count > MAX_SECTIONS || start + METADATA_HEADER_BYTES + count * SECTION_BYTES > image.length) throw problem("has cut SEV metadata");
	return Array.from({ length: count }, (_, index) => {
		const at = start + METADATA_HEADER_BYTES + index * SECTION_BYTES;
		const [address, bytes, type] = [image.readUInt32LE(at), image.readUInt32LE(at + 4), image.readUInt32LE(at + 8)];
		const kind = KINDS[type];
		if (kind === undefined) throw problem(`has a metadata section of the unknown type ${type}`);
		if (address % PAGE_BYTES !== 0 || bytes % PAGE_BYTES !== 0 || bytes > MAX_SECTION_BYTES) {
			throw problem(`has a metadata section of 0x${bytes.toString(16)} bytes at 0x${address.toString(16)}, not whole pages`);
		}
		return { kind, address, bytes };
	});
}
