/** Says what a file is that is not what was asked for: most mistakes are files of another kind, or the right bytes in another coat. */

import { isCertificateTable } from "./certificate-table.ts";

/** A file that was recognised: what it is, and how to get from it to what is needed, if there is a way. */
export interface Foreign {
	readonly what: string;
	readonly remedy?: string;
}

/** QE_VENDOR_ID of Intel's quoting enclave, bytes 12 to 27 of a quote of SGX or TDX ("Intel TDX DCAP Quoting Library API", A.3). */
const INTEL_VENDOR = Buffer.from("939a7233f79c4ca9940a0db3957f0607", "hex");
const TDX_TEE = 0x81;

/** Beginnings that tell a format; the first that fits counts. */
const BEGINNINGS: readonly (Foreign & { readonly bytes: string })[] = [
	{ bytes: "ff544347", what: "a TPM quote (TPMS_ATTEST)" },
	{ bytes: "8444a1013822", what: "an attestation document of AWS Nitro Enclaves" },
	{ bytes: "d9018f", what: "an attestation token of Arm CCA" },
	{
		bytes: "48434c41",
		what: "a report of Azure's paravisor (HCL), which holds the SEV-SNP report in its bytes 32 to 1215",
		remedy: "tail -c +33 FILE | head -c 1184 > report.bin; its REPORT_DATA is the paravisor's, not yours",
	},
	{ bytes: "7f454c46", what: "an ELF program" },
	{ bytes: "1f8b", what: "a gzip archive" },
	{ bytes: "4947564d", what: "an IGVM file" },
];

const PEM_NAMES: readonly (readonly [RegExp, string])[] = [
	[/CERTIFICATE REQUEST/u, "a certificate request (PEM)"],
	[/X509 CRL/u, "a revocation list (PEM)"],
	[/CERTIFICATE/u, "a certificate (PEM)"],
	[/PRIVATE KEY/u, "a private key (PEM)"],
	[/PUBLIC KEY/u, "a public key (PEM)"],
];

/** What the bytes are, or undefined when they tell nothing. */
export function recognise(bytes: Buffer): Foreign | undefined {
	if (bytes.length === 0) return { what: "an empty file" };
	const hex = bytes.subarray(0, 8).toString("hex");
	const beginning = BEGINNINGS.find((known) => hex.startsWith(known.bytes));
	if (beginning !== undefined) return beginning;
	return recogniseText(bytes) ?? recogniseBinary(bytes);
}

function recogniseText(bytes: Buffer): Foreign | undefined {
	const text = bytes.subarray(0, 4096).toString("latin1").trim();
	const pem = /^-----BEGIN ([A-Z0-9 ]{1,40})-----/mu.exec(text)?.[1];
	if (pem !== undefined) return { what: PEM_NAMES.find(([name]) => name.test(pem))?.[1] ?? `a PEM file (${pem})` };
	if (/^(?:0x)?[0-9a-fA-F\s]{32,}$/u.test(text))
		return { what: "hexadecimal text", remedy: "xxd -r -p FILE > report.bin makes bytes of it" };
	if (/^[A-Za-z0-9+/\s]{32,}={0,2}$/u.test(text)) return { what: "base64 text", remedy: "base64 -d FILE > report.bin makes bytes of it" };
	if (/^[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*$/u.test(text)) return { what: "a JSON Web Token" };
	if (/^[{[]/u.test(text)) return { what: "JSON text" };
	return undefined;
}

function recogniseBinary(bytes: Buffer): Foreign | undefined {
	if (bytes.length >= 48 && bytes.subarray(12, 28).equals(INTEL_VENDOR)) {
		return { what: bytes.readUInt32LE(4) === TDX_TEE ? "a quote of Intel TDX" : "a quote of Intel SGX" };
	}
	if (bytes.length === 1024 && bytes[0] === TDX_TEE) return { what: "a TDREPORT of Intel TDX" };
	if (isCertificateTable(bytes)) return { what: "a certificate table (auxblob)", remedy: "give it as --certificates" };
	if (bytes.length >= 1216 && bytes.readUInt32LE(0) === 0 && bytes.readUInt32LE(4) === 1184) {
		return {
			what: "the raw answer of /dev/sev-guest, which holds the report from its byte 32 on",
			remedy: "tail -c +33 FILE | head -c 1184 > report.bin",
		};
	}
	if (bytes[0] === 0x30 && (bytes[1] === 0x82 || bytes[1] === 0x81)) return { what: "DER, perhaps a certificate or a revocation list" };
	return undefined;
}
