/** The chain of certificates from AMD's root key to the key that signed a report: AMD document 57230, "Certificate Chain". One function is one check. */

import { ShimError } from "../base/errors.ts";
import type { Certificate } from "./certificate.ts";
import { isIssuer, isSignedBy, issuerProblem, unknownCritical } from "./certificate.ts";
import { failed, notAsked, passed } from "./checklist.ts";
import type { Outcome } from "./checklist.ts";
import type { Endorsement } from "./endorsement.ts";
import { productNamed } from "./product.ts";
import type { ProductLine } from "./product.ts";
import type { Report } from "./report.ts";
import type { RevocationList } from "./revocation.ts";
import { amdIntermediates, amdRoots } from "./roots.ts";

/** What a report is verified with. */
export interface EvidenceInput {
	readonly report: Report;
	/** The endorsement certificate (VCEK or VLEK) and, as far as given, its issuers. AMD's own issuers need not be given. */
	readonly certificates: readonly Certificate[];
	/** Root certificates to trust besides AMD's. */
	readonly trustedRoots: readonly Certificate[];
	readonly revocationLists: readonly RevocationList[];
	/** The time at which certificates and lists must be valid. */
	readonly at: Date;
}

/** The keys that sign reports: the names that AMD gives their certificates, and the way to get one. */
export const SIGNERS = {
	vcek: { subject: "SEV-VCEK", issuer: (line: string) => `SEV-${line}`, title: "VCEK", issuerTitle: "ASK" },
	vlek: { subject: "SEV-VLEK", issuer: (line: string) => `SEV-VLEK-${line}`, title: "VLEK", issuerTitle: "ASVK" },
} as const;

/** One of them. */
export type Signer = (typeof SIGNERS)[keyof typeof SIGNERS];

const ISSUER_NAME = /^SEV-(?:VLEK-)?([A-Za-z]+)$/u;

/** What the checks find out on their way. */
export interface Findings {
	signer?: Signer;
	endorsement?: Certificate;
	product?: ProductLine;
	root?: Certificate;
	intermediate?: Certificate;
	contents?: Endorsement;
}

/** What an earlier check found. */
export function known<T>(value: T | undefined): T {
	if (value === undefined) throw new ShimError("internal", "a check ran before one that it needs");
	return value;
}

/** Finds the certificate of the signing key among those given. */
export function findEndorsement({ certificates }: EvidenceInput, found: Findings): Outcome {
	const { subject, title } = known(found.signer);
	const leaves = certificates.filter((certificate) => !isIssuer(certificate));
	const matching = leaves.filter(({ subjectName }) => subjectName === subject);
	const [certificate] = matching;
	if (certificate === undefined) {
		const got =
			leaves.length === 0
				? "none"
				: leaves.map(({ subjectName, source }) => `${subjectName || "one without a name"} in ${source}`).join(", ");
		return failed(
			`a certificate of the name ${subject}`,
			got,
			`give the ${title} certificate (DER, PEM, or the auxblob beside the report) as --certificates`,
		);
	}
	if (matching.length > 1) {
		const got = `${matching.length}: ${matching.map(({ source }) => source).join(", ")}`;
		return failed(`one certificate of the name ${subject}`, got, "give only the one that belongs to the report");
	}
	const product = productNamed(ISSUER_NAME.exec(certificate.issuerName)?.[1] ?? "");
	if (product === undefined) {
		return failed(
			"an issuer of Milan, Genoa or Turin",
			certificate.issuerName || "an issuer without a name",
			"use a later version of snpctl for later processors",
		);
	}
	found.endorsement = certificate;
	found.product = product;
	return passed(`${subject} of ${product}, from ${certificate.source}`);
}

/** Finds the root: one given must be AMD's or trusted explicitly. */
export function findRoot({ certificates, trustedRoots }: EvidenceInput, found: Findings): Outcome {
	const name = `ARK-${known(found.product)}`;
	const trusted = [...amdRoots(), ...trustedRoots].filter(({ subjectName }) => subjectName === name);
	const given = certificates.filter(({ issuer, subject, subjectName }) => issuer.equals(subject) && subjectName.startsWith("ARK-"));
	const foreign = given.find((root) => !trusted.some(({ der }) => der.equals(root.der)));
	if (foreign !== undefined) {
		const got = `${foreign.subjectName} in ${foreign.source}, another certificate`;
		return failed(
			`AMD's ${name}, or a root given as --trust-root`,
			got,
			"take the chain from AMD's Key Distribution Service, or leave the root out: AMD's are built in",
		);
	}
	const root =
		trusted.find(({ der }) => given.some((one) => one.der.equals(der))) ??
		trusted.find((one) => signsIntermediate(one, certificates)) ??
		trusted[0];
	if (root === undefined || !isSignedBy(root.signed, root.publicKey, root.source) || issuerProblem(root) !== undefined) {
		return failed(`a root certificate ${name} that is signed by its own key`, root?.source ?? "none", "give AMD's root");
	}
	found.root = root;
	return passed(`${name}, ${root.source}`);
}

function signsIntermediate(root: Certificate, certificates: readonly Certificate[]): boolean {
	return certificates.some((one) => isIssuer(one) && !one.subject.equals(one.issuer) && isSignedBy(one.signed, root.publicKey, one.source));
}

/** Finds the certificate between, given or built in, and checks that the root signed it. */
export function findIntermediate({ certificates }: EvidenceInput, found: Findings): Outcome {
	const [signer, root, endorsement] = [known(found.signer), known(found.root), known(found.endorsement)];
	const name = signer.issuer(known(found.product));
	const given = certificates.filter((one) => isIssuer(one) && !one.subject.equals(one.issuer));
	const intermediate = (given.length > 0 ? given : amdIntermediates()).find(({ subject }) => subject.equals(endorsement.issuer));
	if (endorsement.issuerName !== name) {
		return failed(
			`${name} (${signer.issuerTitle}) as the issuer of the ${signer.title}`,
			endorsement.issuerName,
			"the certificate is not for this kind of key",
		);
	}
	if (intermediate === undefined) {
		const got = given.map(({ subjectName, source }) => `${subjectName} in ${source}`).join(", ") || "none";
		return failed(
			`the certificate ${name} (${signer.issuerTitle})`,
			got,
			`give the chain for ${signer.title} certificates, or leave it out: AMD's is built in`,
		);
	}
	const problem = issuerProblem(intermediate);
	if (problem !== undefined)
		return failed("a certificate authority", `${intermediate.source}: ${problem}`, "take the chain from AMD's Key Distribution Service");
	if (!intermediate.issuer.equals(root.subject) || !isSignedBy(intermediate.signed, root.publicKey, intermediate.source)) {
		const got = `${intermediate.source} was signed by another key`;
		return failed(`${name} signed by ${root.subjectName} (RSASSA-PSS, SHA-384)`, got, "take the chain from AMD's Key Distribution Service");
	}
	found.intermediate = intermediate;
	return passed(`${name}, ${intermediate.source}`);
}

/** Checks that the certificate between signed that of the signing key. */
export function checkEndorsementSignature(found: Findings): Outcome {
	const [signer, intermediate, endorsement] = [known(found.signer), known(found.intermediate), known(found.endorsement)];
	if (!isSignedBy(endorsement.signed, intermediate.publicKey, endorsement.source)) {
		const got = `${endorsement.source} was signed by another key, or changed`;
		return failed(`a ${signer.title} signed by ${intermediate.subjectName} (RSASSA-PSS, SHA-384)`, got, "fetch the certificate again");
	}
	for (const certificate of [endorsement, intermediate, known(found.root)]) {
		const oid = unknownCritical(certificate);
		if (oid !== undefined)
			return failed("no critical extension of an unknown kind", `${oid} in ${certificate.source}`, "use a later version of snpctl");
	}
	return passed();
}

function chainOf(found: Findings): readonly [Certificate, Certificate, Certificate] {
	return [known(found.endorsement), known(found.intermediate), known(found.root)];
}

/** Checks that all three are valid at the time. */
export function checkDates({ at }: EvidenceInput, found: Findings): Outcome {
	for (const { notBefore, notAfter, subjectName, source } of chainOf(found)) {
		if (at >= notBefore && at <= notAfter) continue;
		const expected = `a time from ${notBefore.toISOString()} to ${notAfter.toISOString()}, when ${subjectName} (${source}) is valid`;
		return failed(expected, at.toISOString(), at > notAfter ? "fetch a new certificate" : "check this machine's clock, or --at");
	}
	return passed(at.toISOString());
}

/** Looks all of them up in the lists that are given. */
export function checkRevocation({ revocationLists, at }: EvidenceInput, found: Findings): Outcome {
	if (revocationLists.length === 0) return notAsked("give AMD's list (https://kdsintf.amd.com/vcek/v1/LINE/crl) as --crl");
	const chain = chainOf(found);
	for (const list of revocationLists) {
		const issuer = chain.find(({ subject }) => subject.equals(list.issuer));
		if (issuer === undefined)
			return failed("a list by an issuer of the chain", `${list.source} is by another`, "give the list of the product line");
		if (!isSignedBy(list.signed, issuer.publicKey, list.source)) {
			return failed(
				`a list signed by ${issuer.subjectName}`,
				`${list.source} was signed by another key, or changed`,
				"fetch the list again",
			);
		}
		if (at < list.thisUpdate || (list.nextUpdate !== undefined && at > list.nextUpdate)) {
			const expected = `a list for ${at.toISOString()}`;
			return failed(
				expected,
				`${list.source}, for ${list.thisUpdate.toISOString()} to ${list.nextUpdate?.toISOString() ?? "ever"}`,
				"fetch the list again",
			);
		}
		for (const certificate of chain.filter(({ issuer: name }) => name.equals(list.issuer))) {
			const since = list.revoked.get(certificate.serial);
			if (since === undefined) continue;
			const got = `${certificate.subjectName} (serial ${certificate.serial}) was revoked on ${since.toISOString()}`;
			return failed("certificates that are not revoked", got, "trust nothing that this key vouches for");
		}
	}
	const covered = chain
		.filter(({ issuer }) => revocationLists.some((list) => list.issuer.equals(issuer)))
		.map(({ subjectName }) => subjectName);
	return passed(`looked up: ${covered.join(", ")}`);
}
