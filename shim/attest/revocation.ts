/** Certificate revocation lists (RFC 5280, section 5): AMD publishes one per product line, signed by its ARK, with the ASKs and ASVKs that it has withdrawn. */

import { ShimError } from "../base/errors.ts";
import { readSigned } from "./certificate.ts";
import type { SignedDer } from "./certificate.ts";
import { DerReader, TAG } from "./der.ts";

/** A revocation list, taken apart. Its signature is not checked yet. */
export interface RevocationList {
	readonly source: string;
	readonly signed: SignedDer;
	/** DER of the issuer's name. */
	readonly issuer: Buffer;
	readonly thisUpdate: Date;
	readonly nextUpdate: Date | undefined;
	/** Serial numbers in hexadecimal without leading zeros, with the date of their revocation. */
	readonly revoked: ReadonlyMap<string, Date>;
}

const MAX_REVOKED = 10_000;

/** Reads a list. @throws ShimError `attest.certificate` */
export function parseRevocationList(der: Buffer, source: string): RevocationList {
	const signed = readSigned(der, source);
	const fields = new DerReader(signed.body, source).inside(TAG.sequence);
	if (fields.peek() === TAG.integer) fields.smallInteger();
	fields.element(TAG.sequence);
	const issuer = fields.element(TAG.sequence).raw;
	if (fields.peek() !== TAG.utcTime && fields.peek() !== TAG.generalizedTime) {
		throw new ShimError("attest.certificate", `${source} is DER, but no revocation list`, {
			remedy: "give a certificate as --certificates",
		});
	}
	const thisUpdate = fields.time();
	const hasNext = fields.peek() === TAG.utcTime || fields.peek() === TAG.generalizedTime;
	const nextUpdate = hasNext ? fields.time() : undefined;
	const revoked = new Map<string, Date>();
	const entries = fields.peek() === TAG.sequence ? fields.inside(TAG.sequence) : undefined;
	while (entries !== undefined && !entries.atEnd) {
		const entry = entries.inside(TAG.sequence);
		const serial = entry
			.element(TAG.integer)
			.content.toString("hex")
			.replace(/^0+(?=.)/u, "");
		revoked.set(serial, entry.time());
		if (revoked.size > MAX_REVOKED) throw new ShimError("attest.certificate", `${source} revokes more than ${MAX_REVOKED} certificates`);
	}
	return { source, signed, issuer, thisUpdate, nextUpdate, revoked };
}
