/**
 * The launch digest, which a report calls MEASUREMENT: a chain of SHA-384 over one PAGE_INFO for each page that the host gives the firmware before the guest starts
 * (AMD document 56860, section 8.17, "SNP_LAUNCH_UPDATE", tables "PAGE_INFO" and "Page types").
 */

import { createHash } from "node:crypto";

/** Size of a page. */
export const PAGE_BYTES = 4096;

/** Page types of SNP_LAUNCH_UPDATE. Only of normal and VMSA pages the contents are measured. */
export const PAGE_TYPE = { normal: 1, vmsa: 2, zero: 3, unmeasured: 4, secrets: 5, cpuid: 6 } as const;

/** The name of a page type. */
export type PageType = keyof typeof PAGE_TYPE;

/** Where KVM and others put a VMSA: all ones, as far as 52 bits of page addresses go. */
export const VMSA_ADDRESS = 0xffff_ffff_f000n;

const DIGEST_BYTES = 48;
const PAGE_INFO_BYTES = 0x70;

/** One page of a launch. */
export interface LaunchPage {
	readonly type: PageType;
	/** Guest physical address. */
	readonly address: bigint;
	/** PAGE_BYTES; only for normal and VMSA pages. */
	readonly contents?: Buffer;
}

/** Computes the launch digest of pages in their order. @param seed the digest to go on from: 48 bytes, zeros at the start of a launch */
export function launchDigest(pages: Iterable<LaunchPage>, seed: Buffer = Buffer.alloc(DIGEST_BYTES)): Buffer {
	let digest = seed;
	for (const page of pages) digest = sha384(pageInfo(digest, page));
	return digest;
}

/** PAGE_INFO: the digest so far, the page's digest, length, type, IMI bit, permissions of the lower privilege levels, address. */
function pageInfo(digest: Buffer, { type, address, contents }: LaunchPage): Buffer {
	const info = Buffer.alloc(PAGE_INFO_BYTES);
	digest.copy(info, 0);
	if (contents !== undefined) sha384(contents).copy(info, DIGEST_BYTES);
	info.writeUInt16LE(PAGE_INFO_BYTES, 0x60);
	info.writeUInt8(PAGE_TYPE[type], 0x62);
	info.writeBigUInt64LE(address, 0x68);
	return info;
}

/** The pages of a region, in order. @param bytes a multiple of PAGE_BYTES */
export function* regionPages(type: PageType, address: bigint, bytes: number): Generator<LaunchPage> {
	for (let offset = 0; offset < bytes; offset += PAGE_BYTES) yield { type, address: address + BigInt(offset) };
}

/** The normal pages of contents, in order. @param contents a multiple of PAGE_BYTES */
export function* contentPages(address: bigint, contents: Buffer): Generator<LaunchPage> {
	for (let offset = 0; offset < contents.length; offset += PAGE_BYTES) {
		yield { type: "normal", address: address + BigInt(offset), contents: contents.subarray(offset, offset + PAGE_BYTES) };
	}
}

function sha384(data: Buffer): Buffer {
	return createHash("sha384").update(data).digest();
}
