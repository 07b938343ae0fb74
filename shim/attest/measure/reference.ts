/**
 * Reference values: the measurements that a guest can have, one for each number of processors, with the hashes of what they were computed from, signed. The
 * envelope is DSSE (Dead Simple Signing Envelope, version 1.0.2), which other tools can verify too; the signature is ECDSA P-384 with SHA-384, in DER.
 */

import { createHash, createPublicKey, sign, verify } from "node:crypto";
import type { KeyObject } from "node:crypto";

import * as v from "valibot";

import { ShimError } from "../../base/errors.ts";
import { requireP384 } from "../amd-ecdsa.ts";

/** What the payload is, in the envelope. */
export const REFERENCE_TYPE = "application/vnd.containerd-shim-snp.reference-values.v1+json";

const digest = (bytes: number) => v.pipe(v.string(), v.regex(new RegExp(`^[0-9a-f]{${2 * bytes}}$`, "u")));

const valuesSchema = v.strictObject({
	launcher: v.picklist(["cloud-hypervisor", "igvm", "qemu", "ec2", "gce"]),
	/** SHA-256 of the files, and the command line itself. */
	inputs: v.strictObject({
		igvm: v.optional(digest(32)),
		ovmf: v.optional(digest(32)),
		kernel: v.optional(digest(32)),
		initramfs: v.optional(digest(32)),
		commandLine: v.optional(v.string()),
		vcpuType: v.optional(v.string()),
		guestFeatures: v.optional(v.string()),
	}),
	measurements: v.pipe(
		v.array(v.strictObject({ vcpus: v.pipe(v.number(), v.integer(), v.minValue(1)), measurement: digest(48) })),
		v.minLength(1),
		v.maxLength(4096),
	),
});

/** Measurements with what they were computed from. */
export type ReferenceValues = v.InferOutput<typeof valuesSchema>;

const envelopeSchema = v.object({
	payloadType: v.literal(REFERENCE_TYPE),
	payload: v.pipe(v.string(), v.maxLength(2 * 1024 * 1024)),
	signatures: v.pipe(v.array(v.object({ keyid: v.optional(v.string()), sig: v.string() })), v.minLength(1), v.maxLength(16)),
});

/** Signs reference values. @param key private, P-384 @returns the file's text @throws ShimError `attest.key` */
export function signReference(values: ReferenceValues, key: KeyObject): string {
	requireP384(key, "private");
	const payload = Buffer.from(JSON.stringify(v.parse(valuesSchema, values)));
	const signature = sign("sha384", encodedForSigning(payload), key);
	const envelope = {
		payloadType: REFERENCE_TYPE,
		payload: payload.toString("base64"),
		signatures: [{ keyid: keyId(key), sig: signature.toString("base64") }],
	};
	return `${JSON.stringify(envelope, undefined, 2)}\n`;
}

/**
 * Reads reference values and checks their signature.
 * @param key public, P-384: the only key that is trusted for them
 * @throws ShimError `attest.reference` when the file is none, or the key did not sign it
 */
export function verifyReference(text: string, key: KeyObject, source: string): ReferenceValues {
	requireP384(key);
	const envelope = v.safeParse(envelopeSchema, parseJson(text, source));
	if (!envelope.success) throw new ShimError("attest.reference", `${source} is no file of reference values`);
	const payload = Buffer.from(envelope.output.payload, "base64");
	const publicKey = key.type === "private" ? createPublicKey(key) : key;
	const signed = envelope.output.signatures.some(({ sig }) =>
		verify("sha384", encodedForSigning(payload), publicKey, Buffer.from(sig, "base64")),
	);
	if (!signed) {
		const by = envelope.output.signatures.map(({ keyid }) => keyid ?? "one without a name").join(", ");
		throw new ShimError("attest.reference", `${source} is not signed by the key ${keyId(key)} (it names ${by}), or was changed`);
	}
	const values = v.safeParse(valuesSchema, parseJson(payload.toString("utf8"), source));
	if (!values.success)
		throw new ShimError("attest.reference", `${source}: ${v.getDotPath(values.issues[0]) ?? "it"} ${values.issues[0].message}`);
	return values.output;
}

/** A key's name: SHA-256 of its public half (SubjectPublicKeyInfo). */
export function keyId(key: KeyObject): string {
	const spki = (key.type === "private" ? createPublicKey(key) : key).export({ format: "der", type: "spki" });
	return createHash("sha256").update(spki).digest("hex");
}

/** DSSE's pre-authentication encoding: lengths and contents of type and payload. */
function encodedForSigning(payload: Buffer): Buffer {
	return Buffer.concat([Buffer.from(`DSSEv1 ${Buffer.byteLength(REFERENCE_TYPE)} ${REFERENCE_TYPE} ${payload.length} `), payload]);
}

function parseJson(text: string, source: string): unknown {
	try {
		return JSON.parse(text);
	} catch {
		throw new ShimError("attest.reference", `${source} is no file of reference values: it is no JSON`);
	}
}
