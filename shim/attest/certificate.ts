/** X.509 certificates (RFC 5280), as far as AMD's chains need them: names, dates, key, extensions, and the one signature algorithm that AMD uses. */

import { constants, createPublicKey, verify } from "node:crypto";
import type { KeyObject } from "node:crypto";

import { messageOf, ShimError } from "../base/errors.ts";
import { contextTag, DerReader, TAG } from "./der.ts";

/** A certificate, taken apart. */
export interface Certificate {
	/** The file that it came from, or "AMD's" for a built-in one. */
	readonly source: string;
	readonly der: Buffer;
	readonly signed: SignedDer;
	/** Hexadecimal, without leading zeros. */
	readonly serial: string;
	/** DER of the names: equal names are equal bytes. */
	readonly issuer: Buffer;
	readonly subject: Buffer;
	/** The last common name of each, `ARK-Milan`; empty when there is none. */
	readonly issuerName: string;
	readonly subjectName: string;
	readonly notBefore: Date;
	readonly notAfter: Date;
	readonly publicKey: KeyObject;
	/** By object identifier. */
	readonly extensions: ReadonlyMap<string, Extension>;
}

/** An extension of a certificate. */
export interface Extension {
	readonly critical: boolean;
	readonly value: Buffer;
}

/** A DER structure of the form SEQUENCE { what is signed, algorithm, signature }. */
export interface SignedDer {
	readonly body: Buffer;
	/** AlgorithmIdentifier, as it stands. */
	readonly algorithm: Buffer;
	readonly signature: Buffer;
}

/** Certificates are of about 1.6 KiB; a larger one is refused before it is read. */
const MAX_CERTIFICATE_BYTES = 16 * 1024;

const OID = {
	commonName: "2.5.4.3",
	basicConstraints: "2.5.29.19",
	keyUsage: "2.5.29.15",
	rsassaPss: "1.2.840.113549.1.1.10",
	mgf1: "1.2.840.113549.1.1.8",
	sha384: "2.16.840.1.101.3.4.2.2",
} as const;

/** Critical extensions whose meaning is known here. */
const KNOWN_CRITICAL: readonly string[] = [OID.basicConstraints, OID.keyUsage];

const PSS_SALT_BYTES = 48;
const KEY_CERT_SIGN_BIT = 5;

/**
 * Reads one certificate.
 * @param source names it in errors
 * @throws ShimError `attest.certificate`
 */
export function parseCertificate(der: Buffer, source: string): Certificate {
	if (der.length > MAX_CERTIFICATE_BYTES) {
		throw new ShimError(
			"attest.certificate",
			`${source}: ${der.length} bytes are too many for a certificate (at most ${MAX_CERTIFICATE_BYTES})`,
		);
	}
	const signed = readSigned(der, source);
	const fields = new DerReader(signed.body, source).inside(TAG.sequence);
	const version = fields.optional(contextTag(0));
	if (version === undefined || new DerReader(version.content, source).smallInteger() !== 2) {
		throw new ShimError("attest.certificate", `${source}: it is no X.509 certificate of version 3`);
	}
	const serial = fields
		.element(TAG.integer)
		.content.toString("hex")
		.replace(/^0+(?=.)/u, "");
	if (!fields.element(TAG.sequence).raw.equals(signed.algorithm)) {
		throw new ShimError("attest.certificate", `${source}: it names two signature algorithms`);
	}
	const issuer = fields.element(TAG.sequence).raw;
	const validity = fields.inside(TAG.sequence);
	const [notBefore, notAfter] = [validity.time(), validity.time()];
	const subject = fields.element(TAG.sequence).raw;
	const key = fields.element(TAG.sequence).raw;
	return {
		source,
		der,
		signed,
		serial,
		issuer,
		subject,
		issuerName: commonName(issuer, source),
		subjectName: commonName(subject, source),
		notBefore,
		notAfter,
		publicKey: readKey(key, source),
		extensions: readExtensions(fields, source),
	};
}

/**
 * Reads SEQUENCE { body, algorithm, signature }, the frame of certificates and revocation lists.
 * @throws ShimError `attest.certificate`
 */
export function readSigned(der: Buffer, source: string): SignedDer {
	const outer = new DerReader(der, source);
	const parts = outer.inside(TAG.sequence);
	outer.end();
	const signed = { body: parts.element(TAG.sequence).raw, algorithm: parts.element(TAG.sequence).raw, signature: parts.bits() };
	parts.end();
	return signed;
}

/**
 * True when `signed` was signed by `key` with RSASSA-PSS, SHA-384 and a salt of 48 bytes: the only algorithm of AMD's keys
 * (AMD document 57230, "Certificate definitions"). Any other algorithm is no signature here.
 */
export function isSignedBy(signed: SignedDer, key: KeyObject, source: string): boolean {
	if (key.asymmetricKeyType !== "rsa" || (key.asymmetricKeyDetails?.modulusLength ?? 0) < 4096) return false;
	if (!isPssSha384(signed.algorithm, source)) return false;
	const padding = { padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: PSS_SALT_BYTES };
	return verify("sha384", signed.body, { key, ...padding }, signed.signature);
}

/** What keeps a certificate from issuing others, or undefined: basicConstraints, keyUsage (RFC 5280, section 4.2.1). */
export function issuerProblem(certificate: Certificate): string | undefined {
	const constraints = certificate.extensions.get(OID.basicConstraints);
	if (constraints === undefined || !isAuthority(constraints.value, certificate.source))
		return "it is not marked as a certificate authority";
	const usage = certificate.extensions.get(OID.keyUsage);
	if (usage !== undefined && !hasBit(usage.value, KEY_CERT_SIGN_BIT, certificate.source)) return "its key may not sign certificates";
	return undefined;
}

/** True when a certificate is marked as an authority. */
export function isIssuer(certificate: Certificate): boolean {
	const constraints = certificate.extensions.get(OID.basicConstraints);
	return constraints !== undefined && isAuthority(constraints.value, certificate.source);
}

/** The identifier of a critical extension that is not known here, or undefined: such a certificate must be refused. */
export function unknownCritical(certificate: Certificate): string | undefined {
	return [...certificate.extensions].find(([oid, { critical }]) => critical && !KNOWN_CRITICAL.includes(oid))?.[0];
}

function commonName(name: Buffer, source: string): string {
	const sets = new DerReader(name, source).inside(TAG.sequence);
	let found = "";
	while (!sets.atEnd) {
		const set = sets.inside(TAG.set);
		while (!set.atEnd) {
			const attribute = set.inside(TAG.sequence);
			const isCommonName = attribute.oid() === OID.commonName;
			const tag = attribute.peek() ?? 0;
			const text = attribute.element(tag).content.toString("latin1");
			if (isCommonName && /^[\x20-\x7e]{1,64}$/u.test(text)) found = text;
		}
	}
	return found;
}

function readKey(spki: Buffer, source: string): KeyObject {
	try {
		return createPublicKey({ key: spki, format: "der", type: "spki" });
	} catch (error) {
		throw new ShimError("attest.certificate", `${source}: its public key can't be read: ${messageOf(error)}`, { cause: error });
	}
}

function readExtensions(fields: DerReader, source: string): Map<string, Extension> {
	const extensions = new Map<string, Extension>();
	const wrapped = fields.optional(contextTag(3));
	fields.end();
	if (wrapped === undefined) return extensions;
	const list = new DerReader(wrapped.content, source).inside(TAG.sequence);
	while (!list.atEnd) {
		const entry = list.inside(TAG.sequence);
		const oid = entry.oid();
		const critical = entry.optional(TAG.boolean)?.content[0] === 0xff;
		const value = entry.element(TAG.octetString).content;
		entry.end();
		if (extensions.has(oid)) throw new ShimError("attest.certificate", `${source}: it has the extension ${oid} twice`);
		extensions.set(oid, { critical, value });
	}
	return extensions;
}

function isAuthority(value: Buffer, source: string): boolean {
	return new DerReader(value, source).inside(TAG.sequence).optional(TAG.boolean)?.content[0] === 0xff;
}

function hasBit(value: Buffer, bit: number, source: string): boolean {
	const { content } = new DerReader(value, source).element(TAG.bitString);
	return ((content[1 + (bit >> 3)] ?? 0) & (0x80 >> (bit & 7))) !== 0;
}

/** RSASSA-PSS-params (RFC 4055, section 3.1): SHA-384 in both places, salt 48. */
function isPssSha384(algorithm: Buffer, source: string): boolean {
	const identifier = new DerReader(algorithm, source).inside(TAG.sequence);
	if (identifier.oid() !== OID.rsassaPss || identifier.peek() !== TAG.sequence) return false;
	const parameters = identifier.inside(TAG.sequence);
	const hash = parameters.optional(contextTag(0));
	const mask = parameters.optional(contextTag(1));
	const salt = parameters.optional(contextTag(2));
	if (hash === undefined || mask === undefined || salt === undefined) return false;
	if (new DerReader(hash.content, source).inside(TAG.sequence).oid() !== OID.sha384) return false;
	const generation = new DerReader(mask.content, source).inside(TAG.sequence);
	if (generation.oid() !== OID.mgf1 || generation.inside(TAG.sequence).oid() !== OID.sha384) return false;
	return new DerReader(salt.content, source).smallInteger() === PSS_SALT_BYTES;
}
