/** The launch of a guest with an OVMF: the image, the sections of its metadata in their order, one VMSA for each processor. */

import { ShimError } from "../../base/errors.ts";
import { hashKernelFiles, kernelHashTable } from "./kernel-hashes.ts";
import type { KernelFiles } from "./kernel-hashes.ts";
import { contentPages, launchDigest, PAGE_BYTES, regionPages, VMSA_ADDRESS } from "./launch-digest.ts";
import type { LaunchPage } from "./launch-digest.ts";
import type { Ovmf, OvmfSection } from "./ovmf.ts";
import { ovmfProcessor } from "./processor-state.ts";
import type { OvmfLauncher } from "./processor-state.ts";
import { vmsaPage } from "./vmsa.ts";

/** A launch, apart from the number of processors. */
export interface OvmfLaunch {
	readonly ovmf: Ovmf;
	readonly launcher: OvmfLauncher;
	/** CPUID Fn0000_0001_EAX of the processor's type. */
	readonly signature: number;
	/** SEV_FEATURES. */
	readonly features: bigint;
	/** Undefined when the firmware boots from a disk. */
	readonly files: KernelFiles | undefined;
}

/** The launch digests for several numbers of processors. What comes before the processors is hashed once. @throws ShimError `measure.input` */
export function measureOvmf(launch: OvmfLaunch, vcpuCounts: readonly number[]): Map<number, Buffer> {
	const before = launchDigest(firmwarePages(launch));
	return new Map(vcpuCounts.map((count) => [count, launchDigest(processorPages(launch, count), before)]));
}

function* firmwarePages({ ovmf, launcher, files }: OvmfLaunch): Generator<LaunchPage> {
	if (files !== undefined && (ovmf.hashTableAddress === undefined || !ovmf.sections.some(({ kind }) => kind === "kernel-hashes"))) {
		throw new ShimError("measure.input", "a kernel is given, but the OVMF has no place for its hash", {
			remedy: "give an OVMF of OvmfPkg/AmdSev, or leave the kernel out",
		});
	}
	yield* contentPages(BigInt(ovmf.address), ovmf.image);
	for (const section of ovmf.sections) {
		// EC2 gives the CPUID page last.
		if (section.kind !== "cpuid" || launcher !== "ec2") yield* sectionPages(section, ovmf, launcher, files);
	}
	if (launcher !== "ec2") return;
	for (const section of ovmf.sections.filter(({ kind }) => kind === "cpuid")) yield* sectionPages(section, ovmf, launcher, files);
}

function* sectionPages(
	{ kind, address, bytes }: OvmfSection,
	ovmf: Ovmf,
	launcher: OvmfLauncher,
	files: KernelFiles | undefined,
): Generator<LaunchPage> {
	const at = BigInt(address);
	if (kind === "secrets" || kind === "cpuid") yield { type: kind, address: at };
	else if (kind === "memory") yield* regionPages(launcher === "gce" ? "unmeasured" : "zero", at, bytes);
	else if (kind === "kernel-hashes" && files !== undefined) yield* contentPages(at, hashPage(bytes, ovmf.hashTableAddress ?? 0, files));
	else yield* regionPages("zero", at, bytes);
}

function hashPage(bytes: number, tableAddress: number, files: KernelFiles): Buffer {
	const page = Buffer.alloc(bytes);
	const table = kernelHashTable(hashKernelFiles(files));
	const offset = tableAddress % PAGE_BYTES;
	if (offset + table.length > page.length) throw new ShimError("measure.input", "the OVMF's place for the kernel's hash is too small");
	table.copy(page, offset);
	return page;
}

function* processorPages({ ovmf, launcher, signature, features }: OvmfLaunch, count: number): Generator<LaunchPage> {
	for (let index = 0; index < count; index++) {
		const state = ovmfProcessor(launcher, index, ovmf.resetAddress, signature, features);
		yield { type: "vmsa", address: VMSA_ADDRESS, contents: vmsaPage(state) };
	}
}
