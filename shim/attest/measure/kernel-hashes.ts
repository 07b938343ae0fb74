/**
 * The table of hashes through which kernel, initramfs and command line are measured although they come later, through fw_cfg: the firmware compares them with
 * it. Laid down by QEMU and OVMF (OvmfPkg/AmdSev/BlobVerifierLibSevHashes); Cloud Hypervisor uses the same.
 */

import { createHash } from "node:crypto";

import { guidBytes } from "./guid.ts";

/** What is loaded through fw_cfg. */
export interface KernelFiles {
	readonly kernel: Buffer;
	/** An empty file when there is none. */
	readonly initramfs: Buffer;
	readonly commandLine: string;
}

/** The same by SHA-256: all that a measurement needs of the files. */
export interface KernelHashes {
	readonly kernel: Buffer;
	readonly initramfs: Buffer;
	readonly commandLine: string;
}

const TABLE_GUID = "9438d606-4f22-4cc9-b479-a793d411fd21";
const KERNEL_GUID = "4de79437-abd2-427f-b835-d5b172d2045b";
const INITRAMFS_GUID = "44baf731-3a2f-4bd7-9af1-41e29169781d";
const COMMAND_LINE_GUID = "97d02dd8-bd20-4c94-aa78-e7714d36ab2a";
const GUID_BYTES = 16;
const SHA256_BYTES = 32;
const ENTRY_BYTES = GUID_BYTES + 2 + SHA256_BYTES;
const TABLE_BYTES = GUID_BYTES + 2 + 3 * ENTRY_BYTES;
const PADDED_BYTES = Math.ceil(TABLE_BYTES / 16) * 16;

const sha256 = (data: Buffer): Buffer => createHash("sha256").update(data).digest();

/** Hashes what is loaded. */
export function hashKernelFiles({ kernel, initramfs, commandLine }: KernelFiles): KernelHashes {
	return { kernel: sha256(kernel), initramfs: sha256(initramfs), commandLine };
}

/** The table: command line (with its NUL), initramfs, kernel. */
export function kernelHashTable({ kernel, initramfs, commandLine }: KernelHashes): Buffer {
	const entries = [
		entry(COMMAND_LINE_GUID, sha256(Buffer.from(`${commandLine}\0`))),
		entry(INITRAMFS_GUID, initramfs),
		entry(KERNEL_GUID, kernel),
	];
	const table = Buffer.alloc(PADDED_BYTES);
	Buffer.concat([header(TABLE_GUID, TABLE_BYTES), ...entries]).copy(table);
	return table;
}

function entry(guid: string, hash: Buffer): Buffer {
	return Buffer.concat([header(guid, ENTRY_BYTES), hash]);
}

function header(guid: string, length: number): Buffer {
	const bytes = Buffer.alloc(GUID_BYTES + 2);
	guidBytes(guid).copy(bytes);
	bytes.writeUInt16LE(length, GUID_BYTES);
	return bytes;
}
