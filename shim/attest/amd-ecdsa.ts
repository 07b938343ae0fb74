/**
 * ECDSA P-384 keys and signatures as the SEV-SNP firmware lays them out: AMD document 56860, chapter 10. All numbers are little-endian and 72 bytes
 * wide; X.509 and node:crypto have them big-endian and 48 bytes wide.
 */

import { createHash, createPublicKey, sign, verify } from "node:crypto";
import type { KeyObject } from "node:crypto";

import { ShimError } from "../base/errors.ts";

/** Size of a public key in AMD's format. */
export const AMD_KEY_BYTES = 0x404;
/** Size of a signature in AMD's format. */
export const AMD_SIGNATURE_BYTES = 512;

const AMD_NUMBER_BYTES = 72;
const P384_BYTES = 48;
const CURVE_P384 = 2;
const ECDSA = { dsaEncoding: "ieee-p1363" } as const;

/** True when `signature` (AMD's format) is one over `data` (SHA-384) by `key`. */
export function verifyAmdSignature(key: KeyObject, data: Buffer, signature: Buffer): boolean {
	const r = toBigEndian(signature, 0);
	const s = toBigEndian(signature, AMD_NUMBER_BYTES);
	if (r === undefined || s === undefined) return false;
	return verify("sha384", data, { key, ...ECDSA }, Buffer.concat([r, s]));
}

/** Signs `data` (SHA-384); the answer has AMD_SIGNATURE_BYTES. @throws ShimError `attest.key` unless the key is a private one on P-384 */
export function signAmd(key: KeyObject, data: Buffer): Buffer {
	requireP384(key, "private");
	const raw = sign("sha384", data, { key, ...ECDSA });
	const signature = Buffer.alloc(AMD_SIGNATURE_BYTES);
	toLittleEndian(raw.subarray(0, P384_BYTES)).copy(signature, 0);
	toLittleEndian(raw.subarray(P384_BYTES)).copy(signature, AMD_NUMBER_BYTES);
	return signature;
}

/** A public key (or a private key's public half) in AMD's format. @throws ShimError `attest.key` unless it is on P-384 */
export function toAmdKey(key: KeyObject): Buffer {
	requireP384(key);
	const { x, y } = (key.type === "private" ? createPublicKey(key) : key).export({ format: "jwk" });
	const bytes = Buffer.alloc(AMD_KEY_BYTES);
	bytes.writeUInt32LE(CURVE_P384, 0);
	toLittleEndian(Buffer.from(x ?? "", "base64url")).copy(bytes, 4);
	toLittleEndian(Buffer.from(y ?? "", "base64url")).copy(bytes, 4 + AMD_NUMBER_BYTES);
	return bytes;
}

/** A key in AMD's format as one for node:crypto. @throws ShimError `attest.key` when it is none */
export function fromAmdKey(bytes: Buffer): KeyObject {
	const x = bytes.length === AMD_KEY_BYTES && bytes.readUInt32LE(0) === CURVE_P384 ? toBigEndian(bytes, 4) : undefined;
	const y = x === undefined ? undefined : toBigEndian(bytes, 4 + AMD_NUMBER_BYTES);
	if (x === undefined || y === undefined) throw new ShimError("attest.key", "this is no ECDSA P-384 public key in AMD's format");
	try {
		const jwk = { kty: "EC", crv: "P-384", x: x.toString("base64url"), y: y.toString("base64url") };
		return createPublicKey({ key: jwk, format: "jwk" });
	} catch (error) {
		throw new ShimError("attest.key", "the public key is no point of the curve P-384", { cause: error });
	}
}

/** What a report calls ID_KEY_DIGEST and AUTHOR_KEY_DIGEST: SHA-384 over the key in AMD's format. */
export function amdKeyDigest(key: KeyObject): Buffer {
	return createHash("sha384").update(toAmdKey(key)).digest();
}

/** @throws ShimError `attest.key` when a key is not one on the curve P-384 */
export function requireP384(key: KeyObject, type?: "private"): void {
	if (type !== undefined && key.type !== type) {
		throw new ShimError("attest.key", `a ${type} key is needed, this is a ${key.type} one`);
	}
	const curve = key.asymmetricKeyDetails?.namedCurve;
	if (key.asymmetricKeyType === "ec" && curve === "secp384r1") return;
	throw new ShimError(
		"attest.key",
		`a key on the curve P-384 is needed, this is ${key.asymmetricKeyType ?? "none"} ${curve ?? ""}`.trimEnd(),
		{
			remedy: "openssl ecparam -name secp384r1 -genkey -noout -out key.pem makes one",
		},
	);
}

function toBigEndian(bytes: Buffer, offset: number): Buffer | undefined {
	const number = bytes.subarray(offset, offset + AMD_NUMBER_BYTES);
	if (number.length !== AMD_NUMBER_BYTES || number.subarray(P384_BYTES).some((byte) => byte !== 0)) return undefined;
	return Buffer.from(number.subarray(0, P384_BYTES)).reverse();
}

/** @param number of at most 48 bytes, big-endian */
function toLittleEndian(number: Buffer): Buffer {
	const bytes = Buffer.alloc(AMD_NUMBER_BYTES);
	Buffer.from(number).reverse().copy(bytes);
	return bytes;
}
