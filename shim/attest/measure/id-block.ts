/**
 * The ID block, by which a guest's owner says in advance what may be launched, and its authentication: AMD document 56860, section 8.18
 * ("SNP_LAUNCH_FINISH", tables "ID block" and "ID authentication information").
 */

import type { KeyObject } from "node:crypto";

import { ShimError } from "../../base/errors.ts";
import { AMD_KEY_BYTES, AMD_SIGNATURE_BYTES, amdKeyDigest, fromAmdKey, signAmd, toAmdKey, verifyAmdSignature } from "../amd-ecdsa.ts";
import type { IgvmIdBlock } from "./igvm.ts";

/** What an ID block says. */
export interface IdBlockFields {
	/** 48 bytes. */
	readonly measurement: Buffer;
	/** 16 bytes. */
	readonly familyId: Buffer;
	/** 16 bytes. */
	readonly imageId: Buffer;
	readonly guestSvn: number;
	readonly guestPolicy: bigint;
}

/** An ID block with its authentication, as the firmware takes them, and the key digests that a report will show. */
export interface IdBlock {
	readonly block: Buffer;
	readonly authentication: Buffer;
	readonly idKeyDigest: Buffer;
	/** Undefined without an author key. */
	readonly authorKeyDigest: Buffer | undefined;
}

const BLOCK_BYTES = 96;
const BLOCK_VERSION = 1;
const AUTHENTICATION_BYTES = 4096;
const ALGORITHM_ECDSA_P384_SHA384 = 1;
/** Where the parts of the authentication lie. */
export const ID_AUTHENTICATION = { blockSignature: 0x40, idKey: 0x240, idKeySignature: 0x680, authorKey: 0x880 } as const;

/** Makes the 96 bytes of an ID block. */
export function idBlockBytes({ measurement, familyId, imageId, guestSvn, guestPolicy }: IdBlockFields): Buffer {
	const block = Buffer.alloc(BLOCK_BYTES);
	measurement.copy(block, 0);
	familyId.copy(block, 48);
	imageId.copy(block, 64);
	block.writeUInt32LE(BLOCK_VERSION, 80);
	block.writeUInt32LE(guestSvn, 84);
	block.writeBigUInt64LE(guestPolicy, 88);
	return block;
}

/**
 * Makes and signs an ID block.
 * @param idKey private, P-384: signs the block
 * @param authorKey private, P-384: signs the ID key, when there is one
 * @throws ShimError `attest.key`
 */
export function signIdBlock(fields: IdBlockFields, idKey: KeyObject, authorKey?: KeyObject): IdBlock {
	const block = idBlockBytes(fields);
	const authentication = Buffer.alloc(AUTHENTICATION_BYTES);
	authentication.writeUInt32LE(ALGORITHM_ECDSA_P384_SHA384, 0);
	signAmd(idKey, block).copy(authentication, ID_AUTHENTICATION.blockSignature);
	toAmdKey(idKey).copy(authentication, ID_AUTHENTICATION.idKey);
	if (authorKey !== undefined) {
		authentication.writeUInt32LE(ALGORITHM_ECDSA_P384_SHA384, 4);
		signAmd(authorKey, toAmdKey(idKey)).copy(authentication, ID_AUTHENTICATION.idKeySignature);
		toAmdKey(authorKey).copy(authentication, ID_AUTHENTICATION.authorKey);
	}
	return {
		block,
		authentication,
		idKeyDigest: amdKeyDigest(idKey),
		authorKeyDigest: authorKey === undefined ? undefined : amdKeyDigest(authorKey),
	};
}

/**
 * Checks an authentication against its block, as the firmware does at the end of a launch.
 * @returns what is wrong, or undefined
 */
export function idBlockProblem(block: Buffer, authentication: Buffer, hasAuthorKey: boolean): string | undefined {
	if (block.length !== BLOCK_BYTES || authentication.length !== AUTHENTICATION_BYTES)
		return "the ID block or its authentication has another size";
	const cut = (offset: number, bytes: number): Buffer => authentication.subarray(offset, offset + bytes);
	const idKey = cut(ID_AUTHENTICATION.idKey, AMD_KEY_BYTES);
	if (!signedBy(idKey, block, cut(ID_AUTHENTICATION.blockSignature, AMD_SIGNATURE_BYTES))) return "the ID key did not sign the ID block";
	if (!hasAuthorKey) return undefined;
	const authorKey = cut(ID_AUTHENTICATION.authorKey, AMD_KEY_BYTES);
	return signedBy(authorKey, idKey, cut(ID_AUTHENTICATION.idKeySignature, AMD_SIGNATURE_BYTES))
		? undefined
		: "the author key did not sign the ID key";
}

function signedBy(key: Buffer, data: Buffer, signature: Buffer): boolean {
	try {
		return verifyAmdSignature(fromAmdKey(key), data, signature);
	} catch (error) {
		if (error instanceof ShimError) return false;
		throw error;
	}
}

/**
 * Checks the ID block of an IGVM file as Cloud Hypervisor would give it to the firmware: version 1, and the policy of the launch.
 * @returns what is wrong, or undefined; the digests are what a report will show
 */
export function checkIgvmIdBlock(
	block: IgvmIdBlock,
	launch: { readonly measurement: Buffer; readonly guestPolicy: bigint },
): { readonly problem: string | undefined; readonly idKeyDigest: Buffer | undefined; readonly authorKeyDigest: Buffer | undefined } {
	const fields = { ...launch, familyId: block.familyId, imageId: block.imageId, guestSvn: block.guestSvn };
	const authentication = Buffer.alloc(AUTHENTICATION_BYTES);
	block.signature.copy(authentication, ID_AUTHENTICATION.blockSignature);
	block.idKey.copy(authentication, ID_AUTHENTICATION.idKey);
	block.authorSignature.copy(authentication, ID_AUTHENTICATION.idKeySignature);
	block.authorKey.copy(authentication, ID_AUTHENTICATION.authorKey);
	const problem = block.measurement.equals(launch.measurement)
		? idBlockProblem(idBlockBytes(fields), authentication, block.authorKeyEnabled)
		: `it is for the measurement ${block.measurement.toString("hex")}`;
	const digest = (key: Buffer): Buffer | undefined => {
		const whole = Buffer.alloc(AMD_KEY_BYTES);
		key.copy(whole);
		try {
			return amdKeyDigest(fromAmdKey(whole));
		} catch {
			return undefined;
		}
	};
	return { problem, idKeyDigest: digest(block.idKey), authorKeyDigest: block.authorKeyEnabled ? digest(block.authorKey) : undefined };
}
