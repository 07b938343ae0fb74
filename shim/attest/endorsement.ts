/**
 * What AMD certifies about a chip in a VCEK or VLEK certificate: extensions below 1.3.6.1.4.1.3704.1 (AMD document 57230, "Versioned Chip Endorsement Key
 * (VCEK) Certificate and KDS Interface Specification", table "X.509 extensions").
 */

import { ShimError } from "../base/errors.ts";
import type { Certificate } from "./certificate.ts";
import { DerReader, TAG } from "./der.ts";
import type { ProductLine } from "./product.ts";
import { TCB_BYTES } from "./tcb.ts";

const AMD = "1.3.6.1.4.1.3704.1";

/** Extensions that hold the bytes of a TCB_VERSION, first to last. */
const TCB_EXTENSIONS: Readonly<Record<ProductLine, readonly (string | undefined)[]>> = {
	Milan: ["3.1", "3.2", "3.4", "3.5", "3.6", "3.7", "3.3", "3.8"],
	Genoa: ["3.1", "3.2", "3.4", "3.5", "3.6", "3.7", "3.3", "3.8"],
	Turin: ["3.9", "3.1", "3.2", "3.3", "3.5", "3.6", "3.7", "3.8"],
};

/** Size of a chip's identifier in a certificate; that in a report is filled up with zeros. */
const CHIP_ID_BYTES: Readonly<Record<ProductLine, number>> = { Milan: 64, Genoa: 64, Turin: 8 };

/** Size of CHIP_ID in a report. */
const REPORT_CHIP_ID_BYTES = 64;

/** What an endorsement certificate says. */
export interface Endorsement {
	/** As AMD writes it: `Milan-B0`, `Turin`. */
	readonly productName: string;
	/** The TCB version that the key belongs to, laid out as in a report. */
	readonly tcb: Buffer;
	/** The chip, as in a report; undefined in a VLEK certificate. */
	readonly chipId: Buffer | undefined;
	/** The provider that the key was given to; undefined in a VCEK certificate. */
	readonly provider: string | undefined;
}

/**
 * Reads AMD's extensions.
 * @throws ShimError `attest.certificate` when one that the product line needs is missing or malformed
 */
export function readEndorsement(certificate: Certificate, product: ProductLine): Endorsement {
	const extension = (oid: string): Buffer | undefined => certificate.extensions.get(`${AMD}.${oid}`)?.value;
	const problem = (text: string): ShimError => new ShimError("attest.certificate", `${certificate.source}: ${text}`);
	const text = (oid: string): string | undefined => {
		const value = extension(oid);
		return value === undefined ? undefined : new DerReader(value, certificate.source).element(TAG.ia5String).content.toString("latin1");
	};
	const tcb = TCB_EXTENSIONS[product].map((oid) => {
		const value = oid === undefined ? undefined : extension(oid);
		if (value === undefined) throw problem(`the extension ${AMD}.${oid}, a part of the TCB version of ${product}, is missing`);
		const level = new DerReader(value, certificate.source).smallInteger();
		if (level > 255) throw problem(`the extension ${AMD}.${oid} is ${level}, over 255`);
		return level;
	});
	if (tcb.length !== TCB_BYTES) throw problem("the TCB version is incomplete");
	const productName = text("2");
	if (productName === undefined) throw problem(`the extension ${AMD}.2, the product's name, is missing`);
	const chipId = chipIdOf(extension("4"), product, certificate.source);
	const provider = text("5");
	if ((chipId === undefined) === (provider === undefined)) {
		throw problem("it must name either a chip (VCEK) or a provider (VLEK)");
	}
	return { productName, tcb: Buffer.from(tcb), chipId, provider };
}

/** KDS writes the identifier as bare bytes; an OCTET STRING around it is taken as well. */
function chipIdOf(value: Buffer | undefined, product: ProductLine, source: string): Buffer | undefined {
	if (value === undefined) return undefined;
	const expected = CHIP_ID_BYTES[product];
	const bare = value.length === expected ? value : new DerReader(value, source).element(TAG.octetString).content;
	if (bare.length !== expected) {
		throw new ShimError(
			"attest.certificate",
			`${source}: the chip's identifier has ${bare.length} bytes, on ${product} it has ${expected}`,
		);
	}
	const chipId = Buffer.alloc(REPORT_CHIP_ID_BYTES);
	bare.copy(chipId);
	return chipId;
}
