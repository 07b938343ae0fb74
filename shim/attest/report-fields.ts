/** Every field of a report by name, for people and programs to read. Nothing here says that a report is genuine. */

import type { ProductLine } from "./product.ts";
import type { FirmwareVersion, Report } from "./report.ts";
import { decodeTcb } from "./tcb.ts";
import type { TcbVersion } from "./tcb.ts";

/** Only Turin's chips have short identifiers (AMD document 57230, "hwID"); in a report zeros fill them up. */
const TURIN_CHIP_ID_BYTES = 8;

/**
 * The product line by which TCB versions are laid out, as far as the report alone tells: by the processor since version 3, before that by the chip's
 * identifier. Milan and Genoa have one layout, "Milan" stands for both.
 */
export function layoutOf({ processor, chipId }: Report): ProductLine {
	if (processor?.product !== undefined) return processor.product;
	const masked = chipId.every((byte) => byte === 0);
	return !masked && chipId.subarray(TURIN_CHIP_ID_BYTES).every((byte) => byte === 0) ? "Turin" : "Milan";
}

/** A TCB version with the bytes that it was read from. */
export type TcbField = TcbVersion & { readonly raw: string };

/** The fields, in the order of the report; bytes are hexadecimal, 64-bit numbers too. */
export function reportFields(report: Report) {
	const layout = layoutOf(report);
	const tcb = (raw: Buffer): TcbField => ({ raw: raw.toString("hex"), ...decodeTcb(raw, layout) });
	const hex = (bytes: Buffer): string => bytes.toString("hex");
	const mitigations = (mask: bigint | undefined): string | undefined => (mask === undefined ? undefined : `0x${mask.toString(16)}`);
	return {
		version: report.version,
		guestSvn: report.guestSvn,
		guestPolicy: {
			raw: `0x${report.policy.raw.toString(16)}`,
			minimumAbi: `${report.policy.abiMajor}.${report.policy.abiMinor}`,
			...report.policy.bits,
		},
		familyId: hex(report.familyId),
		imageId: hex(report.imageId),
		vmpl: report.vmpl,
		signatureAlgorithm: report.signatureAlgorithm,
		currentTcb: tcb(report.currentTcb),
		platform: { raw: `0x${report.platform.raw.toString(16)}`, ...report.platform.bits },
		authorKeyEnabled: report.authorKeyEnabled,
		chipKeyMasked: report.chipKeyMasked,
		signingKey: report.signingKey,
		reportData: hex(report.reportData),
		measurement: hex(report.measurement),
		hostData: hex(report.hostData),
		idKeyDigest: hex(report.idKeyDigest),
		authorKeyDigest: hex(report.authorKeyDigest),
		reportId: hex(report.reportId),
		migrationReportId: hex(report.migrationReportId),
		reportedTcb: tcb(report.reportedTcb),
		processor: report.processor,
		chipId: hex(report.chipId),
		committedTcb: tcb(report.committedTcb),
		currentFirmware: firmware(report.current),
		committedFirmware: firmware(report.committed),
		launchTcb: tcb(report.launchTcb),
		launchMitigations: mitigations(report.launchMitigations),
		currentMitigations: mitigations(report.currentMitigations),
		signature: { r: hex(littleEndian(report.signature, 0)), s: hex(littleEndian(report.signature, 72)) },
		problems: report.problems,
	};
}

function firmware({ major, minor, build }: FirmwareVersion): string {
	return `${major}.${minor}.${build}`;
}

function littleEndian(signature: Buffer, offset: number): Buffer {
	return Buffer.from(signature.subarray(offset, offset + 48)).reverse();
}
