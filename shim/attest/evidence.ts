/**
 * Is a report genuine? From AMD's root key down to the report, in this order: the report's form, the key that it says it is signed with, the chain of
 * certificates, their dates and revocation, the report's signature, and that the certificate is for this chip at this TCB version.
 */

import { verifyAmdSignature } from "./amd-ecdsa.ts";
import {
	checkDates,
	checkEndorsementSignature,
	checkRevocation,
	findEndorsement,
	findIntermediate,
	findRoot,
	known,
	SIGNERS,
} from "./chain.ts";
import type { EvidenceInput, Findings } from "./chain.ts";
import { failed, passed } from "./checklist.ts";
import type { Checklist, Outcome } from "./checklist.ts";
import { readEndorsement } from "./endorsement.ts";
import type { Endorsement } from "./endorsement.ts";
import { productNamed } from "./product.ts";
import type { ProductLine } from "./product.ts";
import { SIGNED_BYTES } from "./report.ts";
import type { Report } from "./report.ts";
import { decodeTcb, describeTcb } from "./tcb.ts";

/** What a genuine report rests on. */
export interface Evidence {
	readonly report: Report;
	readonly product: ProductLine;
	readonly endorsement: Endorsement;
}

/**
 * Runs the checks.
 * @returns undefined when one failed
 */
export function checkEvidence(list: Checklist, input: EvidenceInput): Evidence | undefined {
	const found: Findings = {};
	const check = (name: string, title: string, run: () => Outcome): void => list.check("evidence", name, title, run);
	check("report.format", "the report is well formed", () => checkFormat(input.report));
	check("report.signing-key", "the report says which key signed it", () => checkSigningKey(input.report, found));
	check("certificate.endorsement", "the certificate of the signing key is there", () => findEndorsement(input, found));
	check("certificate.root", "the chain ends in a trusted root", () => findRoot(input, found));
	check("certificate.intermediate", "the root signed the certificate between", () => findIntermediate(input, found));
	check("certificate.signature", "that one signed the certificate of the signing key", () => checkEndorsementSignature(found));
	check("certificate.dates", "all certificates are valid at the time", () => checkDates(input, found));
	check("certificate.revocation", "none of them is revoked", () => checkRevocation(input, found));
	check("report.product", "report and certificates are of one product line", () => checkProduct(input.report, found));
	check("report.signature", "the key of the certificate signed the report", () => checkSignature(input.report, found));
	check("endorsement.tcb", "the certificate is for the report's TCB version", () => checkTcb(input.report, found));
	check("endorsement.chip", "the certificate is for the report's chip", () => checkChip(input.report, found));
	if (list.failure !== undefined) return undefined;
	return { report: input.report, product: known(found.product), endorsement: known(found.contents) };
}

function checkFormat(report: Report): Outcome {
	const [problem] = report.problems;
	if (problem === undefined) return passed(`version ${report.version}`);
	return failed(
		"a report as AMD document 56860 lays it down",
		problem,
		"the report was damaged or is no report: ask the guest for a new one",
	);
}

function checkSigningKey(report: Report, found: Findings): Outcome {
	if (report.signingKey !== "vcek" && report.signingKey !== "vlek") {
		const got = report.signingKey === "none" ? "no key" : "a key of an unknown kind";
		return failed("VCEK or VLEK", got, "the host has switched signing off, or the firmware is newer than this program");
	}
	if (report.chipKeyMasked) {
		return failed(
			"a key of the chip",
			"the chip's keys are masked (MASK_CHIP_KEY)",
			"the host's firmware must not be configured to mask the chip's key",
		);
	}
	found.signer = SIGNERS[report.signingKey];
	return passed(found.signer.title);
}

function checkProduct(report: Report, found: Findings): Outcome {
	const product = known(found.product);
	const contents = readEndorsement(known(found.endorsement), product);
	found.contents = contents;
	const { processor } = report;
	if (processor !== undefined && processor.product !== product) {
		const cpu = `family 0x${processor.family.toString(16)}, model 0x${processor.model.toString(16)}`;
		return failed(
			`a processor of ${product}, as the certificates say`,
			`${processor.product ?? "one of an unknown line"} (${cpu})`,
			"give the certificate of the chip that made the report",
		);
	}
	// Reports of version 3 name the processor; where they do, AMD's name in the certificate is for people only.
	if (processor === undefined && productNamed(contents.productName) !== product) {
		return failed(`a certificate for ${product}`, contents.productName, "give the certificate of the chip that made the report");
	}
	return passed(contents.productName);
}

function checkSignature(report: Report, found: Findings): Outcome {
	const { publicKey, source } = known(found.endorsement);
	const details = publicKey.asymmetricKeyDetails?.namedCurve;
	if (details !== "secp384r1")
		return failed(
			"a key on the curve P-384",
			`${publicKey.asymmetricKeyType ?? "none"} ${details ?? ""}`.trimEnd(),
			"give the certificate of the chip that made the report",
		);
	if (verifyAmdSignature(publicKey, report.bytes.subarray(0, SIGNED_BYTES), report.signature)) return passed("ECDSA P-384 with SHA-384");
	const remedy =
		"the report was changed, or it is of another chip or TCB version than the certificate: fetch the certificate for its CHIP_ID and REPORTED_TCB";
	return failed(`a signature over bytes 0 to 0x${(SIGNED_BYTES - 1).toString(16)} by the key of ${source}`, "another signature", remedy);
}

function checkTcb(report: Report, found: Findings): Outcome {
	const [product, { tcb }] = [known(found.product), known(found.contents)];
	if (tcb.equals(report.reportedTcb)) return passed(describeTcb(decodeTcb(tcb, product)));
	return failed(
		`${describeTcb(decodeTcb(tcb, product))} (0x${tcb.toString("hex")}), as the certificate says`,
		`${describeTcb(decodeTcb(report.reportedTcb, product))} (0x${report.reportedTcb.toString("hex")})`,
		"fetch the certificate for the report's REPORTED_TCB",
	);
}

function checkChip(report: Report, found: Findings): Outcome {
	const { chipId, provider } = known(found.contents);
	if (chipId === undefined) return passed(`a key of the provider ${provider ?? ""}, which names no chip`);
	if (chipId.equals(report.chipId)) return passed(chipId.toString("hex"));
	const masked = report.chipId.every((byte) => byte === 0);
	const remedy = masked
		? "the host masks the chip's identifier (MASK_CHIP_ID): ask it not to, or to use a VLEK"
		: "give the certificate of the chip that made the report";
	return failed(`the chip ${chipId.toString("hex")}`, masked ? "a report that names no chip" : report.chipId.toString("hex"), remedy);
}
