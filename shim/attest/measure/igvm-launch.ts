/**
 * The launch of a guest from an IGVM file. `cloud-hypervisor`: as Cloud Hypervisor does it on KVM (vmm/src/igvm/igvm_loader.rs): pages in the file's order, those
 * without data as zero pages, the kernel's hashes at a fixed place, and at the end one VMSA for each processor, made by KVM. `igvm`: as the file itself says, VMSAs
 * included, which is what Microsoft's tools and hypervisor measure.
 */

import { ShimError } from "../../base/errors.ts";
import type { Igvm, IgvmDirective } from "./igvm.ts";
import { hashKernelFiles, kernelHashTable } from "./kernel-hashes.ts";
import type { KernelFiles, KernelHashes } from "./kernel-hashes.ts";
import { launchDigest, PAGE_BYTES, regionPages, VMSA_ADDRESS } from "./launch-digest.ts";
import type { LaunchPage } from "./launch-digest.ts";
import { kvmProcessorFrom, kvmResetProcessor, SNP_ACTIVE } from "./processor-state.ts";
import { readVmsa, vmsaPage } from "./vmsa.ts";

/** Where Cloud Hypervisor puts the table of hashes, and how much of the page it overwrites (vmm/src/sev.rs). */
const HASH_PAGE = 0x10000n;
const HASH_OFFSET = 0xc00;
const HASH_BYTES = 0x400;

/** Cloud Hypervisor reads the kernel's setup header first, one page (linux-loader, boot_params). */
const MIN_KERNEL_BYTES = 4096;

/** Longest command line with its NUL (arch/src/x86_64/layout.rs). */
const MAX_COMMAND_LINE_BYTES = 0x10000;

/** The guest policy when the file has none, or zero: SMT is allowed (vmm/src/vm.rs). */
export const DEFAULT_GUEST_POLICY = 0x30000n;

type PageDirective = Extract<IgvmDirective, { readonly kind: "page" }>;

/** The guest policy that Cloud Hypervisor launches the file with. */
export function guestPolicyOf({ guestPolicy }: Igvm): bigint {
	return guestPolicy === undefined || guestPolicy === 0n ? DEFAULT_GUEST_POLICY : guestPolicy;
}

/**
 * The launch digests under Cloud Hypervisor on KVM, for several numbers of processors.
 * @param files what goes through fw_cfg; undefined when the file brings its own kernel
 * @throws ShimError `measure.input` for what Cloud Hypervisor can't launch
 */
export function measureIgvmOnKvm(igvm: Igvm, files: KernelFiles | undefined, vcpuCounts: readonly number[]): Map<number, Buffer> {
	if (files !== undefined && files.kernel.length < MIN_KERNEL_BYTES)
		throw new ShimError("measure.input", `the kernel has ${files.kernel.length} bytes: it is no kernel`);
	return measureIgvmByHashes(igvm, files === undefined ? undefined : hashKernelFiles(files), vcpuCounts);
}

/** The same from the files' hashes. @throws ShimError `measure.input` */
export function measureIgvmByHashes(igvm: Igvm, hashes: KernelHashes | undefined, vcpuCounts: readonly number[]): Map<number, Buffer> {
	const before = launchDigest(kvmPages(igvm, hashes === undefined ? undefined : hashBlock(hashes)));
	const contexts = new Map<number, Buffer>();
	for (const directive of igvm.directives) if (directive.kind === "processor") contexts.set(directive.index, directive.vmsa);
	const first = contexts.get(0);
	if (first === undefined) throw new ShimError("measure.input", `${igvm.source}: it has no VMSA of the first processor`);
	const features = readVmsa(first).registers.sevFeatures | SNP_ACTIVE;
	return new Map(vcpuCounts.map((count) => [count, launchDigest(kvmProcessors(contexts, features, count), before)]));
}

function* kvmProcessors(contexts: ReadonlyMap<number, Buffer>, features: bigint, count: number): Generator<LaunchPage> {
	for (let index = 0; index < count; index++) {
		const vmsa = contexts.get(index);
		const state = vmsa === undefined ? kvmResetProcessor(features) : kvmProcessorFrom(vmsa, features);
		yield { type: "vmsa", address: VMSA_ADDRESS, contents: vmsaPage(state) };
	}
}

function* kvmPages(igvm: Igvm, hashes: Buffer | undefined): Generator<LaunchPage> {
	const refuse = (text: string): ShimError =>
		new ShimError("measure.input", `${igvm.source}: ${text}`, { remedy: "Cloud Hypervisor can't launch this file" });
	const seen = new Set<bigint>();
	let hashed = hashes === undefined;
	for (const page of pagesOf(igvm, refuse)) {
		if (seen.has(page.address)) throw refuse(`the page at 0x${page.address.toString(16)} is given twice`);
		seen.add(page.address);
		if (page.source.kind === "parameter-insert") {
			if (hashes !== undefined && page.address === HASH_PAGE) throw refuse("a parameter area lies where the kernel's hashes belong");
			yield { type: "unmeasured", address: page.address };
			continue;
		}
		if (hashes !== undefined && page.address === HASH_PAGE && page.source.type !== "cpuid") {
			hashed = true;
			yield { type: "normal", address: page.address, contents: overlay(page.source.data, hashes) };
			continue;
		}
		yield kvmPage(page.source);
	}
	if (hashed) return;
	if (seen.has(HASH_PAGE)) throw refuse("the page where the kernel's hashes belong is the CPUID page");
	if (hashes !== undefined) yield { type: "normal", address: HASH_PAGE, contents: overlay(undefined, hashes) };
}

function kvmPage({ address, data, type, unmeasured }: PageDirective): LaunchPage {
	if (type === "secrets" || type === "cpuid") return { type, address };
	if (unmeasured) return { type: "unmeasured", address };
	return data === undefined ? { type: "zero", address } : { type: "normal", address, contents: data };
}

/** Pages of the file in its order, parameter areas page by page. */
function* pagesOf(
	igvm: Igvm,
	refuse: (text: string) => ShimError,
): Generator<{ readonly address: bigint; readonly source: PageDirective | Extract<IgvmDirective, { readonly kind: "parameter-insert" }> }> {
	const areas = new Map<number, number>();
	for (const directive of igvm.directives) {
		if (directive.kind === "other") throw refuse(`it has a directive that Cloud Hypervisor does not take: ${directive.name}`);
		if (directive.kind === "parameter-area") areas.set(directive.index, directive.bytes);
		if (directive.kind === "parameter-insert") {
			for (const { address } of regionPages("unmeasured", directive.address, areas.get(directive.index) ?? 0))
				yield { address, source: directive };
		}
		if (directive.kind !== "page") continue;
		if (directive.type === "cpuid-xf" || directive.shared)
			throw refuse(`the page at 0x${directive.address.toString(16)} is of a kind that Cloud Hypervisor does not take`);
		yield { address: directive.address, source: directive };
	}
}

function overlay(data: Buffer | undefined, hashes: Buffer): Buffer {
	const page = Buffer.alloc(PAGE_BYTES);
	data?.copy(page);
	hashes.copy(page, HASH_OFFSET);
	return page;
}

/** The table, filled up to HASH_BYTES. The command line is trimmed, as Cloud Hypervisor does it. */
function hashBlock({ kernel, initramfs, commandLine }: KernelHashes): Buffer {
	const trimmed = commandLine.trim();
	if (!/^[\x20-\x7e]*$/u.test(trimmed))
		throw new ShimError("measure.input", "the command line has characters that are not printable ASCII");
	if (trimmed.length >= MAX_COMMAND_LINE_BYTES)
		throw new ShimError("measure.input", `the command line has ${trimmed.length} characters, ${MAX_COMMAND_LINE_BYTES - 1} at most`);
	const block = Buffer.alloc(HASH_BYTES);
	kernelHashTable({ kernel, initramfs, commandLine: trimmed }).copy(block);
	return block;
}

/** The launch digest as the file says, with its own VMSAs and without any other input. @throws ShimError `measure.input` */
export function measureIgvmFile(igvm: Igvm): Buffer {
	return launchDigest(filePages(igvm));
}

function* filePages({ directives }: Igvm): Generator<LaunchPage> {
	const areas = new Map<number, number>();
	const zeros = Buffer.alloc(PAGE_BYTES);
	for (const directive of directives) {
		if (directive.kind === "parameter-area") areas.set(directive.index, directive.bytes);
		if (directive.kind === "parameter-insert") yield* regionPages("unmeasured", directive.address, areas.get(directive.index) ?? 0);
		if (directive.kind === "processor") yield { type: "vmsa", address: directive.address, contents: directive.vmsa };
		if (directive.kind !== "page" || directive.shared) continue;
		const { address, type, unmeasured, data } = directive;
		if (type === "secrets") yield { type: "secrets", address };
		else if (type !== "normal") yield { type: "cpuid", address };
		else if (unmeasured) yield { type: "unmeasured", address };
		else yield { type: "normal", address, contents: data ?? zeros };
	}
}
