/** From files to what is verified: a report (with the certificates that may follow it), certificates, revocation lists. Each file is recognised by its bytes. */

import * as v from "valibot";

import { ShimError } from "../base/errors.ts";
import { isCertificateTable, readCertificateTable } from "./certificate-table.ts";
import { parseCertificate } from "./certificate.ts";
import type { Certificate } from "./certificate.ts";
import { recognise } from "./foreign.ts";
import { parseRevocationList } from "./revocation.ts";
import type { RevocationList } from "./revocation.ts";
import { parseReport, REPORT_BYTES } from "./report.ts";
import type { Report } from "./report.ts";

/** A file, as it was read. */
export interface InputFile {
	readonly name: string;
	readonly bytes: Buffer;
}

/** No file of evidence is larger: a certificate table is of some 20 KiB, a revocation list of some KiB. */
export const MAX_EVIDENCE_BYTES = 1024 * 1024;

const MAX_CERTIFICATES = 64;
const OPENING_BRACE = 0x7b;

/** What a guest answers at `/aa/evidence` (docs/contracts.md), as far as it is read. */
const evidenceSchema = v.object({
	report: v.string(),
	certificates: v.optional(v.nullable(v.string())),
	late_bound: v.optional(v.object({ initdata_digest: v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/u)) })),
});

interface Unpacked {
	readonly bytes: Buffer;
	readonly lateBound?: string | undefined;
}

/** The report in a guest's evidence, with the certificates behind it; the file itself when it is none. */
function unpacked({ name, bytes }: InputFile): Unpacked {
	if (bytes[0] !== OPENING_BRACE) return { bytes };
	let document: unknown;
	try {
		document = JSON.parse(bytes.toString("utf8"));
	} catch {
		return { bytes };
	}
	const evidence = v.safeParse(evidenceSchema, document);
	if (!evidence.success) return { bytes };
	const { report, certificates, late_bound: late } = evidence.output;
	const parts = [report, certificates ?? ""].map((text) => Buffer.from(text, "base64"));
	if (parts[0]?.length !== REPORT_BYTES)
		throw new ShimError("attest.report", `${name} is evidence whose report has ${parts[0]?.length ?? 0} bytes, not ${REPORT_BYTES}`);
	return { bytes: Buffer.concat(parts), lateBound: late?.initdata_digest };
}

/** A report with what came with it. */
export interface GivenReport {
	readonly report: Report;
	readonly certificates: readonly Certificate[];
	/** The digest of the initdata that the guest says was bound late, which the evidence alone does not prove. */
	readonly lateBound: string | undefined;
}

/**
 * Reads a report, alone or with the certificate table of the extended guest request behind it, or in the evidence that a guest answers at `/aa/evidence`.
 * @param table whether the table is wanted: it is the host's word, and may be broken where nobody needs it
 * @throws ShimError `attest.report` that says what the file is when it is no report
 */
export function readReport(file: InputFile, { table }: { readonly table: boolean } = { table: true }): GivenReport {
	const { name } = file;
	const { bytes, lateBound } = unpacked(file);
	const rest = bytes.subarray(REPORT_BYTES);
	const followed = rest.length > 0 && (isCertificateTable(rest) || rest.every((byte) => byte === 0));
	const foreign = bytes.length === REPORT_BYTES && looksLikeReport(bytes) ? undefined : recognise(bytes);
	if (foreign !== undefined || (bytes.length !== REPORT_BYTES && !followed)) {
		const what =
			foreign === undefined
				? `is no SEV-SNP report: it has ${bytes.length} bytes, a report has ${REPORT_BYTES}`
				: `is ${foreign.what}, not an SEV-SNP report`;
		throw new ShimError("attest.report", `${name} ${what}`, foreign?.remedy === undefined ? {} : { remedy: foreign.remedy });
	}
	const report = parseReport(bytes.subarray(0, REPORT_BYTES));
	const certificates = table && isCertificateTable(rest) ? readCertificates({ name, bytes: rest }) : [];
	return { report, certificates, lateBound };
}

function looksLikeReport(bytes: Buffer): boolean {
	const version = bytes.readUInt32LE(0);
	return version > 0 && version < 0x100;
}

/**
 * Reads certificates: one in DER, any number in PEM, or a certificate table.
 * @throws ShimError `attest.certificate` that says what the file is when it holds none
 */
export function readCertificates(file: InputFile): Certificate[] {
	const { name, bytes } = file;
	if (isCertificateTable(bytes)) {
		return readCertificateTable(bytes, name).map((entry) => parseCertificate(unwrap(entry.bytes), `${name} (${entry.name})`));
	}
	const blocks = pemBlocks(bytes, "CERTIFICATE");
	if (blocks.length > MAX_CERTIFICATES) {
		throw new ShimError("attest.certificate", `${name} has ${blocks.length} certificates; at most ${MAX_CERTIFICATES} are read`);
	}
	if (blocks.length > 0)
		return blocks.map((der, index) => parseCertificate(der, blocks.length === 1 ? name : `${name} (certificate ${index + 1})`));
	if (bytes[0] === 0x30) return [parseCertificate(bytes, name)];
	throw foreignFile(name, bytes, "a certificate (DER, PEM) or certificate table");
}

/** Reads one revocation list in DER or PEM. @throws ShimError `attest.certificate` */
export function readRevocationList(file: InputFile): RevocationList {
	const [block] = pemBlocks(file.bytes, "X509 CRL");
	if (block !== undefined) return parseRevocationList(block, file.name);
	if (file.bytes[0] === 0x30) return parseRevocationList(file.bytes, file.name);
	throw foreignFile(file.name, file.bytes, "a revocation list (DER, PEM)");
}

/** An entry of a table is DER; some hosts put PEM there. */
function unwrap(bytes: Buffer): Buffer {
	return pemBlocks(bytes, "CERTIFICATE")[0] ?? bytes;
}

function pemBlocks(bytes: Buffer, label: string): Buffer[] {
	const text = bytes.toString("latin1");
	const blocks = text.matchAll(new RegExp(`-----BEGIN ${label}-----([A-Za-z0-9+/=\\s]*)-----END ${label}-----`, "gu"));
	return [...blocks].map(([, body]) => Buffer.from(body ?? "", "base64"));
}

function foreignFile(name: string, bytes: Buffer, wanted: string): ShimError {
	const foreign = recognise(bytes);
	const report = foreign === undefined && bytes.length === REPORT_BYTES ? "an attestation report, perhaps" : undefined;
	return new ShimError("attest.certificate", `${name} is ${foreign?.what ?? report ?? "of no kind that is known"}, not ${wanted}`);
}
