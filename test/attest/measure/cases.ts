/** Launches with an OVMF that are measured here and by an independent program, their input made from seeds. */

import { randomBytes, randomSource } from "../../support/random.ts";
import { makeOvmf, SECTIONS } from "../../support/firmware.ts";
import type { OvmfSpec } from "../../support/firmware.ts";

export interface OvmfCase {
	readonly ovmf: OvmfSpec;
	readonly launcher: "qemu" | "ec2" | "gce";
	readonly vcpus: number;
	readonly type: string;
	readonly features: number;
	/** Sizes of kernel and initramfs, and the command line; undefined for a firmware that boots from a disk. */
	readonly files?: { readonly kernelBytes: number; readonly initramfsBytes: number; readonly commandLine: string };
}

const files = { kernelBytes: 9001, initramfsBytes: 12345, commandLine: "console=ttyS0 root=/dev/vda ro" };
const noHashes = { sections: SECTIONS.filter(([, , type]) => type !== 0x10), hashTable: 0 };

export const OVMF_CASES: readonly OvmfCase[] = [
	...(["qemu", "ec2", "gce"] as const).flatMap((launcher): OvmfCase[] => [
		{ ovmf: { seed: 1 }, launcher, vcpus: 1, type: "EPYC-Milan", features: 0x1 },
		{ ovmf: { seed: 2 }, launcher, vcpus: 3, type: "EPYC-v4", features: 0x1, files },
		{ ovmf: { seed: 3, ...noHashes }, launcher, vcpus: 2, type: "EPYC-Genoa-v1", features: 0x21 },
	]),
	{ ovmf: { seed: 4 }, launcher: "qemu", vcpus: 64, type: "EPYC-Turin", features: 0x1, files },
	{ ovmf: { seed: 5 }, launcher: "qemu", vcpus: 1, type: "EPYC-Rome-v2", features: 0x1, files: { ...files, initramfsBytes: 0 } },
	{ ovmf: { seed: 6, pages: 64 }, launcher: "qemu", vcpus: 2, type: "EPYC-IBPB", features: 0x1, files: { ...files, commandLine: "" } },
	{ ovmf: { seed: 7, resetAddress: 0xfffffff0 }, launcher: "ec2", vcpus: 2, type: "EPYC", features: 0x1 },
	{ ovmf: { seed: 8, sections: [], hashTable: 0 }, launcher: "qemu", vcpus: 1, type: "EPYC-Milan-v2", features: 0x5 },
];

/** The files of a case. */
export function filesOf({ ovmf, files }: OvmfCase): { ovmf: Buffer; kernel: Buffer | undefined; initramfs: Buffer } {
	const random = randomSource(1000 + ovmf.seed);
	return {
		ovmf: makeOvmf(ovmf),
		kernel: files === undefined ? undefined : randomBytes(random, files.kernelBytes),
		initramfs: randomBytes(random, files?.initramfsBytes ?? 0),
	};
}
