/**
 * SEV-SNP attestation reports: AMD document 56860, section 7.3, table "ATTESTATION_REPORT", versions 2 to 5. Version 3 added the processor's family,
 * model and stepping, version 5 the mitigation vectors; size and signature are the same in all.
 */

import { ShimError } from "../base/errors.ts";
import { decodeGuestPolicy, guestPolicyProblem } from "./guest-policy.ts";
import type { GuestPolicy } from "./guest-policy.ts";
import { decodePlatformInfo } from "./platform-info.ts";
import { productOfCpu } from "./product.ts";
import type { ProductLine } from "./product.ts";
import { TCB_BYTES } from "./tcb.ts";

/** Size of a report of any version. */
export const REPORT_BYTES = 0x4a0;
/** The signature is over the bytes before this offset. */
export const SIGNED_BYTES = 0x2a0;
/** Report versions whose layout is known. */
export const REPORT_VERSIONS = { first: 2, last: 5 } as const;
/** SIGNATURE_ALGO of ECDSA with P-384 and SHA-384 (section 10, "Chapter 10: Algorithms"). */
export const ECDSA_P384_SHA384 = 1;
/** VMPL of a report that the host asked for (SNP_HV_REPORT_REQ). */
export const HOST_VMPL = 0xffff_ffff;

/** Which key signed a report. */
export type SigningKey = "vcek" | "vlek" | "none" | "unknown";

/** A version of the firmware: major, minor, build. */
export interface FirmwareVersion {
	readonly major: number;
	readonly minor: number;
	readonly build: number;
}

/** The processor of a report of version 3 or later. */
export interface Processor {
	readonly family: number;
	readonly model: number;
	readonly stepping: number;
	/** Undefined for a processor of a line that this version does not know. */
	readonly product: ProductLine | undefined;
}

/** Every field of a report. TCB versions stay eight bytes: their layout depends on the product line. */
export interface Report {
	readonly bytes: Buffer;
	readonly version: number;
	readonly guestSvn: number;
	readonly policy: GuestPolicy;
	readonly familyId: Buffer;
	readonly imageId: Buffer;
	readonly vmpl: number;
	readonly signatureAlgorithm: number;
	readonly currentTcb: Buffer;
	readonly platform: ReturnType<typeof decodePlatformInfo>;
	readonly authorKeyEnabled: boolean;
	/** The chip does not sign with its own key: CHIP_ID and signature are not to be relied on. */
	readonly chipKeyMasked: boolean;
	readonly signingKey: SigningKey;
	readonly reportData: Buffer;
	readonly measurement: Buffer;
	readonly hostData: Buffer;
	readonly idKeyDigest: Buffer;
	readonly authorKeyDigest: Buffer;
	readonly reportId: Buffer;
	readonly migrationReportId: Buffer;
	readonly reportedTcb: Buffer;
	/** Undefined before version 3. */
	readonly processor: Processor | undefined;
	readonly chipId: Buffer;
	readonly committedTcb: Buffer;
	readonly current: FirmwareVersion;
	readonly committed: FirmwareVersion;
	readonly launchTcb: Buffer;
	/** Undefined before version 5. */
	readonly launchMitigations: bigint | undefined;
	/** Undefined before version 5. */
	readonly currentMitigations: bigint | undefined;
	/** SIGNATURE: r and s, 72 bytes each, little-endian, then zeros. */
	readonly signature: Buffer;
	/** What breaks the specification, in words; empty for a sound report. */
	readonly problems: readonly string[];
}

const SIGNING_KEYS: readonly SigningKey[] = ["vcek", "vlek", "unknown", "unknown", "unknown", "unknown", "unknown", "none"];

/**
 * Takes a report apart.
 * @param bytes exactly REPORT_BYTES
 * @throws ShimError `attest.report` when its size or version is not one that is known; anything else that is wrong is in `problems`
 */
export function parseReport(bytes: Buffer): Report {
	if (bytes.length !== REPORT_BYTES) {
		throw new ShimError("attest.report", `an SEV-SNP report has ${REPORT_BYTES} bytes, this has ${bytes.length}`);
	}
	const version = bytes.readUInt32LE(0);
	if (version < REPORT_VERSIONS.first || version > REPORT_VERSIONS.last) {
		const known = `${REPORT_VERSIONS.first} to ${REPORT_VERSIONS.last}`;
		throw new ShimError("attest.report", `the report's version is ${version}; known are ${known}`, {
			remedy: version > REPORT_VERSIONS.last ? "use a later version of snpctl" : "this may be no SEV-SNP report at all",
		});
	}
	const cut = (offset: number, length: number): Buffer => bytes.subarray(offset, offset + length);
	const tcb = (offset: number): Buffer => cut(offset, TCB_BYTES);
	const firmware = (offset: number): FirmwareVersion => ({
		build: bytes.readUInt8(offset),
		minor: bytes.readUInt8(offset + 1),
		major: bytes.readUInt8(offset + 2),
	});
	const keyInfo = bytes.readUInt32LE(0x48);
	return {
		bytes,
		version,
		guestSvn: bytes.readUInt32LE(0x04),
		policy: decodeGuestPolicy(bytes.readBigUInt64LE(0x08)),
		familyId: cut(0x10, 16),
		imageId: cut(0x20, 16),
		vmpl: bytes.readUInt32LE(0x30),
		signatureAlgorithm: bytes.readUInt32LE(0x34),
		currentTcb: tcb(0x38),
		platform: decodePlatformInfo(bytes.readBigUInt64LE(0x40)),
		authorKeyEnabled: (keyInfo & 1) === 1,
		chipKeyMasked: (keyInfo & 2) === 2,
		signingKey: SIGNING_KEYS[(keyInfo >>> 2) & 7] ?? "unknown",
		reportData: cut(0x50, 64),
		measurement: cut(0x90, 48),
		hostData: cut(0xc0, 32),
		idKeyDigest: cut(0xe0, 48),
		authorKeyDigest: cut(0x110, 48),
		reportId: cut(0x140, 32),
		migrationReportId: cut(0x160, 32),
		reportedTcb: tcb(0x180),
		processor: version >= 3 ? processorOf(bytes) : undefined,
		chipId: cut(0x1a0, 64),
		committedTcb: tcb(0x1e0),
		current: firmware(0x1e8),
		committed: firmware(0x1ec),
		launchTcb: tcb(0x1f0),
		launchMitigations: version >= 5 ? bytes.readBigUInt64LE(0x1f8) : undefined,
		currentMitigations: version >= 5 ? bytes.readBigUInt64LE(0x200) : undefined,
		signature: cut(SIGNED_BYTES, 512),
		problems: problemsOf(bytes, version, keyInfo),
	};
}

function processorOf(bytes: Buffer): Processor {
	const [family, model, stepping] = [bytes.readUInt8(0x188), bytes.readUInt8(0x189), bytes.readUInt8(0x18a)];
	return { family, model, stepping, product: productOfCpu(family, model) };
}

/** Fields that must be zero: from, to (exclusive). */
function reservedRanges(version: number): readonly (readonly [number, number])[] {
	return [
		[0x4c, 0x50],
		[version >= 3 ? 0x18b : 0x188, 0x1a0],
		[0x1eb, 0x1ec],
		[0x1ef, 0x1f0],
		[version >= 5 ? 0x208 : 0x1f8, SIGNED_BYTES],
		[SIGNED_BYTES + 144, REPORT_BYTES],
	];
}

function problemsOf(bytes: Buffer, version: number, keyInfo: number): string[] {
	const problems = reservedRanges(version)
		.filter(([from, to]) => bytes.subarray(from, to).some((byte) => byte !== 0))
		.map(([from, to]) => `bytes 0x${from.toString(16)} to 0x${(to - 1).toString(16)} must be zero in version ${version}`);
	const policy = guestPolicyProblem(bytes.readBigUInt64LE(0x08));
	if (policy !== undefined) problems.push(policy);
	if (keyInfo >>> 5 !== 0) problems.push(`KEY_INFO 0x${keyInfo.toString(16)} has bits that must be zero`);
	if (bytes.readUInt32LE(0x34) !== ECDSA_P384_SHA384) {
		problems.push(`the signature algorithm is ${bytes.readUInt32LE(0x34)}; known is ${ECDSA_P384_SHA384} (ECDSA P-384 with SHA-384)`);
	}
	return problems;
}
