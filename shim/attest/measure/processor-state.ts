/**
 * The initial state of virtual processors by who launches the guest. KVM makes each VMSA itself when the launch is finished, from the registers that it holds
 * then (Linux, arch/x86/kvm/svm/sev.c, sev_es_sync_vmsa); what a launcher did not set has KVM's reset values (svm.c, init_vmcb; x86.c, kvm_vcpu_reset).
 */

import { ShimError } from "../../base/errors.ts";
import type { ProcessorState, Segment, SegmentName } from "./vmsa.ts";
import { readVmsa } from "./vmsa.ts";

/** Who launches a guest with an OVMF: QEMU, or the hypervisors of two clouds. */
export type OvmfLauncher = "qemu" | "ec2" | "gce";

const EFER_SVME = 0x1000n;
const CR4_MCE = 0x40n;
const CR0_ET = 0x10n;
const CR0_CACHE_DISABLE = 0x6000_0000n;
const RFLAGS_FIXED = 2n;
const DR6_RESET = 0xffff_0ff0n;
const DR7_RESET = 0x400n;
const PAT_RESET = 0x0007_0406_0007_0406n;
const XCR0_RESET = 1n;
const RDX_RESET = 0x600n;
const MXCSR_RESET = 0x1f80;
const X87_CONTROL_RESET = 0x37f;
/** SEV_FEATURES: SNP is active. KVM sets it for every SNP guest. */
export const SNP_ACTIVE = 1n;

/** Where the first processor starts: 16 bytes below 4 GiB. */
const RESET_VECTOR = 0xffff_fff0;

const segment = (attributes: number, base = 0n, selector = 0, limit = 0xffff): Segment => ({ selector, attributes, limit, base });

/** What differs between the launchers of an OVMF. */
interface LauncherState {
	readonly code: (entry: number) => number;
	readonly stack: number;
	readonly task: number;
	readonly rdx: (signature: number) => bigint;
	readonly pat: bigint;
	readonly mxcsr: number;
	readonly x87Control: number;
}

const LAUNCHERS: Readonly<Record<OvmfLauncher, LauncherState>> = {
	qemu: { code: () => 0x9b, stack: 0x93, task: 0x8b, rdx: BigInt, pat: PAT_RESET, mxcsr: MXCSR_RESET, x87Control: X87_CONTROL_RESET },
	ec2: {
		code: (entry) => (entry === RESET_VECTOR ? 0x9a : 0x9b),
		stack: 0x92,
		task: 0x83,
		rdx: () => RDX_RESET,
		pat: PAT_RESET,
		mxcsr: 0,
		x87Control: 0,
	},
	gce: { code: () => 0x9b, stack: 0x93, task: 0x8b, rdx: () => RDX_RESET, pat: 0x0007_0106n, mxcsr: 0, x87Control: 0 },
};

/**
 * The state of a processor that starts in an OVMF.
 * @param index 0 is the first one, which starts at the reset vector; the others start at `resetAddress`
 * @param signature CPUID Fn0000_0001_EAX of the processor's type
 * @param features SEV_FEATURES
 */
export function ovmfProcessor(
	launcher: OvmfLauncher,
	index: number,
	resetAddress: number,
	signature: number,
	features: bigint,
): ProcessorState {
	const entry = index === 0 ? RESET_VECTOR : resetAddress;
	const { code, stack, task, rdx, pat, mxcsr, x87Control } = LAUNCHERS[launcher];
	const data = segment(0x93);
	return {
		segments: {
			es: data,
			cs: segment(code(entry), BigInt(entry - (entry & 0xffff)), 0xf000),
			ss: segment(stack),
			ds: data,
			fs: data,
			gs: data,
			gdtr: segment(0),
			ldtr: segment(0x82),
			idtr: segment(0),
			tr: segment(task),
		},
		registers: { ...resetRegisters(features), rip: BigInt(entry & 0xffff), rdx: rdx(signature), pat },
		mxcsr,
		x87Control,
	};
}

function resetRegisters(features: bigint): NonNullable<ProcessorState["registers"]> {
	return {
		efer: EFER_SVME,
		cr4: CR4_MCE,
		cr0: CR0_ET,
		dr7: DR7_RESET,
		dr6: DR6_RESET,
		rflags: RFLAGS_FIXED,
		pat: PAT_RESET,
		sevFeatures: features,
		xcr0: XCR0_RESET,
	};
}

/** A processor as KVM resets it, which nobody has set since. */
export function kvmResetProcessor(features: bigint): ProcessorState {
	const data = segment(0x92);
	return {
		segments: {
			es: data,
			cs: segment(0x9a, 0xffff_0000n, 0xf000),
			ss: data,
			ds: data,
			fs: data,
			gs: data,
			gdtr: segment(0),
			ldtr: segment(0x82),
			idtr: segment(0),
			tr: segment(0x83),
		},
		registers: { ...resetRegisters(features), rip: 0xfff0n, rdx: RDX_RESET },
		mxcsr: MXCSR_RESET,
		x87Control: X87_CONTROL_RESET,
	};
}

const GENERAL_REGISTERS = [
	"rax",
	"rbx",
	"rcx",
	"rdx",
	"rsp",
	"rbp",
	"rsi",
	"rdi",
	"r8",
	"r9",
	"r10",
	"r11",
	"r12",
	"r13",
	"r14",
	"r15",
] as const;
const TABLES: readonly SegmentName[] = ["gdtr", "idtr"];

/**
 * A processor whose registers Cloud Hypervisor has set from a VMSA of an IGVM file: segments, tables, control and general registers go through KVM_SET_SREGS
 * and KVM_SET_REGS, all else stays as KVM resets it (Cloud Hypervisor, hypervisor/src/kvm, setup_sev_snp_regs).
 * @throws ShimError `measure.input` when the VMSA holds what can't be set
 */
export function kvmProcessorFrom(vmsa: Buffer, features: bigint): ProcessorState {
	const { segments, registers } = readVmsa(vmsa);
	const entries = (Object.entries(segments) as [SegmentName, Segment][]).map(
		([name, { selector, attributes, limit, base }]): [SegmentName, Segment] => {
			if (!TABLES.includes(name)) return [name, { selector, attributes: attributes & 0xfff, limit, base }];
			if (limit > 0xffff)
				throw new ShimError(
					"measure.input",
					`the IGVM file's VMSA has a limit of 0x${limit.toString(16)} in ${name}: Cloud Hypervisor takes 16 bits`,
				);
			return [name, segment(0, base, 0, limit)];
		},
	);
	const general = Object.fromEntries(GENERAL_REGISTERS.map((name) => [name, registers[name]]));
	return {
		segments: Object.fromEntries(entries) as Record<SegmentName, Segment>,
		registers: {
			...resetRegisters(features),
			...general,
			rip: registers.rip,
			rflags: registers.rflags | RFLAGS_FIXED,
			cr0: registers.cr0 & ~CR0_CACHE_DISABLE,
			cr3: registers.cr3,
			cr4: registers.cr4 | CR4_MCE,
			efer: registers.efer | EFER_SVME,
		},
		cpl: (segments.ss.attributes >> 5) & 3,
		mxcsr: MXCSR_RESET,
		x87Control: X87_CONTROL_RESET,
	};
}
