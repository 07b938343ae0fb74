/** AMD's chain of keys in small: roots, signing keys, endorsement certificates, revocation lists and reports, signed with keys that are in fixtures. */

import { constants, createPrivateKey, createPublicKey, sign } from "node:crypto";
import type { KeyObject } from "node:crypto";
import { readFileSync } from "node:fs";

import { signAmd } from "../../shim/attest/amd-ecdsa.ts";
import { bits, context, element, ia5, integer, octets, oid, sequence, set, text, time, yes } from "./der.ts";

export const fixture = (name: string): Buffer => readFileSync(new URL(`../attest/fixtures/${name}`, import.meta.url));

/** The private key of one role: ark, ask, asvk, vcek, vlek. */
export const testKey = (role: string): KeyObject => createPrivateKey(fixture(`${role}.test-key.pem`));

/** RSASSA-PSS with SHA-384 and a salt of 48 bytes, as an AlgorithmIdentifier. */
const PSS = (() => {
	const sha384 = sequence(oid("2.16.840.1.101.3.4.2.2"), element(0x05));
	return sequence(
		oid("1.2.840.113549.1.1.10"),
		sequence(context(0, sha384), context(1, sequence(oid("1.2.840.113549.1.1.8"), sha384)), context(2, integer(48))),
	);
})();

export const PKCS1 = sequence(oid("1.2.840.113549.1.1.12"), element(0x05));

export interface CertificateSpec {
	readonly subject: string;
	readonly issuer: string;
	readonly key: KeyObject;
	readonly signer: KeyObject;
	readonly serial?: number;
	readonly notBefore?: Date;
	readonly notAfter?: Date;
	readonly extensions?: readonly Buffer[];
	/** AlgorithmIdentifier and padding other than AMD's. */
	readonly pkcs1?: boolean;
}

const name = (common: string): Buffer =>
	sequence(set(sequence(oid("2.5.4.10"), text("Tests"))), set(sequence(oid("2.5.4.3"), element(0x0c, Buffer.from(common)))));

export const extension = (id: string, value: Buffer, critical = false): Buffer =>
	sequence(oid(id), ...(critical ? [yes()] : []), octets(value));

/** basicConstraints and keyUsage of an authority. */
export const authority = (): Buffer[] => [
	extension("2.5.29.19", sequence(yes()), true),
	extension("2.5.29.15", bits(Buffer.from([0x06]), 1), true),
];

/** Signs SEQUENCE { body, algorithm, signature }. */
function signed(body: Buffer, signer: KeyObject, pkcs1: boolean): Buffer {
	const padding = pkcs1 ? { padding: constants.RSA_PKCS1_PADDING } : { padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 48 };
	return sequence(body, pkcs1 ? PKCS1 : PSS, bits(sign("sha384", body, { key: signer, ...padding })));
}

/** A certificate in DER. */
export function makeCertificate(spec: CertificateSpec): Buffer {
	const { subject, issuer, key, signer, serial = 1, extensions = [], pkcs1 = false } = spec;
	const spki = createPublicKey(key).export({ format: "der", type: "spki" });
	const validity = sequence(time(spec.notBefore ?? new Date("2022-01-01")), time(spec.notAfter ?? new Date("2050-01-01")));
	const body = sequence(
		context(0, integer(2)),
		integer(serial),
		pkcs1 ? PKCS1 : PSS,
		name(issuer),
		validity,
		name(subject),
		spki,
		...(extensions.length > 0 ? [context(3, sequence(...extensions))] : []),
	);
	return signed(body, signer, pkcs1);
}

/** A revocation list in DER. */
export function makeRevocationList(
	issuer: string,
	signer: KeyObject,
	revoked: readonly number[],
	dates: { readonly from?: Date; readonly to?: Date } = {},
): Buffer {
	const entries = revoked.map((serial) => sequence(integer(serial), time(new Date("2024-05-01"))));
	const list = entries.length > 0 ? [sequence(...entries)] : [];
	const body = sequence(
		integer(1),
		PSS,
		name(issuer),
		time(dates.from ?? new Date("2024-01-01")),
		time(dates.to ?? new Date("2049-01-01")),
		...list,
	);
	return signed(body, signer, false);
}

/** The kinds of chain that a test can ask for. */
export interface ChainSpec {
	readonly line: "Milan" | "Genoa" | "Turin";
	readonly key: "vcek" | "vlek";
	/** REPORTED_TCB, eight bytes as in the report. */
	readonly tcb: Buffer;
	/** The chip's identifier, of the line's length. */
	readonly chipId: Buffer;
}

const AMD = "1.3.6.1.4.1.3704.1";
const TCB_ORDER = {
	Milan: ["3.1", "3.2", "3.4", "3.5", "3.6", "3.7", "3.3", "3.8"],
	Genoa: ["3.1", "3.2", "3.4", "3.5", "3.6", "3.7", "3.3", "3.8"],
	Turin: ["3.9", "3.1", "3.2", "3.3", "3.5", "3.6", "3.7", "3.8"],
} as const;

/** AMD's extensions of an endorsement certificate. */
export function endorsementExtensions({ line, key, tcb, chipId }: ChainSpec): Buffer[] {
	return [
		extension(`${AMD}.1`, integer(key === "vlek" ? 0 : 1)),
		extension(`${AMD}.2`, ia5(line === "Turin" ? "Turin" : `${line}-B0`)),
		...[...tcb].map((level, index) => extension(`${AMD}.${TCB_ORDER[line][index]}`, integer(level))),
		key === "vcek" ? extension(`${AMD}.4`, chipId) : extension(`${AMD}.5`, ia5("example-cloud")),
	];
}

/** Root, intermediate and endorsement certificate of a line, in DER. `change` alters one of them before it is signed. */
export function makeChain(
	spec: ChainSpec,
	change: { readonly [Role in "ark" | "intermediate" | "endorsement"]?: Partial<CertificateSpec> } = {},
): { ark: Buffer; intermediate: Buffer; endorsement: Buffer } {
	const [intermediateRole, intermediateName] = spec.key === "vcek" ? ["ask", `SEV-${spec.line}`] : ["asvk", `SEV-VLEK-${spec.line}`];
	const ark = `ARK-${spec.line}`;
	const [arkKey, intermediateKey, key] = [testKey("ark"), testKey(intermediateRole ?? ""), testKey(spec.key)];
	return {
		ark: makeCertificate({ subject: ark, issuer: ark, key: arkKey, signer: arkKey, extensions: authority(), ...change.ark }),
		intermediate: makeCertificate({
			subject: intermediateName ?? "",
			issuer: ark,
			key: intermediateKey,
			signer: arkKey,
			serial: 2,
			extensions: authority(),
			...change.intermediate,
		}),
		endorsement: makeCertificate({
			subject: spec.key === "vcek" ? "SEV-VCEK" : "SEV-VLEK",
			issuer: intermediateName ?? "",
			key,
			signer: intermediateKey,
			serial: 3,
			extensions: endorsementExtensions(spec),
			...change.endorsement,
		}),
	};
}

const PROCESSORS = { Milan: [0x19, 0x01, 0x01], Genoa: [0x19, 0x11, 0x01], Turin: [0x1a, 0x02, 0x01] } as const;

/** A report of any version, signed with the test's key. `change` writes into it before it is signed. */
export function makeReport(
	version: number,
	{ line, key, tcb, chipId }: ChainSpec,
	change: (report: Buffer) => void = () => undefined,
): Buffer {
	const report = Buffer.alloc(0x4a0);
	report.writeUInt32LE(version, 0);
	report.writeBigUInt64LE(0x30000n, 0x08);
	report.writeUInt32LE(1, 0x34);
	for (const offset of [0x38, 0x180, 0x1e0, 0x1f0]) tcb.copy(report, offset);
	report.writeUInt32LE(key === "vlek" ? 1 << 2 : 0, 0x48);
	report.fill(0x11, 0x50, 0x90).fill(0x22, 0x90, 0xc0).fill(0x33, 0xc0, 0xe0);
	if (version >= 3) Buffer.from(PROCESSORS[line]).copy(report, 0x188);
	if (key === "vcek") chipId.copy(report, 0x1a0);
	report.set([21, 55, 1], 0x1e8);
	report.set([21, 55, 1], 0x1ec);
	if (version >= 5) report.writeBigUInt64LE(0x3n, 0x1f8);
	if (version >= 5) report.writeBigUInt64LE(0x7n, 0x200);
	change(report);
	signAmd(testKey(key), report.subarray(0, 0x2a0)).copy(report, 0x2a0);
	return report;
}
