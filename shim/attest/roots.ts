/** AMD's built-in certificates, read. */

import { X509Certificate } from "node:crypto";

import { AMD_CERTIFICATES } from "./amd/certificates.ts";
import type { AmdCertificates } from "./amd/certificates.ts";
import { parseCertificate } from "./certificate.ts";
import type { Certificate } from "./certificate.ts";
import { PRODUCT_LINES } from "./product.ts";

let roots: readonly Certificate[] | undefined;
let intermediates: readonly Certificate[] | undefined;

/** AMD's root certificates (ARK), one per product line. */
export function amdRoots(): readonly Certificate[] {
	roots ??= PRODUCT_LINES.map((line) => builtIn(AMD_CERTIFICATES[line].ark, `AMD's ARK of ${line}`));
	return roots;
}

/** AMD's intermediate certificates (ASK and ASVK) of all product lines. */
export function amdIntermediates(): readonly Certificate[] {
	const kinds: readonly (keyof AmdCertificates)[] = ["ask", "asvk"];
	intermediates ??= PRODUCT_LINES.flatMap((line) =>
		kinds.map((kind) => builtIn(AMD_CERTIFICATES[line][kind], `AMD's ${kind.toUpperCase()} of ${line}`)),
	);
	return intermediates;
}

function builtIn(pem: string, source: string): Certificate {
	return parseCertificate(new X509Certificate(pem).raw, source);
}
