/**
 * VMSA pages, the measured initial state of a virtual processor: AMD64 Architecture Programmer's Manual, volume 2, table B-4 ("VMSA Layout, State Save Area
 * for SEV-ES"). What is in one depends on who makes it: KVM from its own registers, or the creator of an IGVM file.
 */

import { PAGE_BYTES } from "./launch-digest.ts";

/** Offsets of segments, 16 bytes each: selector, attributes, limit, base. */
const SEGMENTS = { es: 0x00, cs: 0x10, ss: 0x20, ds: 0x30, fs: 0x40, gs: 0x50, gdtr: 0x60, ldtr: 0x70, idtr: 0x80, tr: 0x90 } as const;

/** Offsets of 64-bit registers. */
const REGISTERS = {
	efer: 0xd0,
	cr4: 0x148,
	cr3: 0x150,
	cr0: 0x158,
	dr7: 0x160,
	dr6: 0x168,
	rflags: 0x170,
	rip: 0x178,
	rsp: 0x1d8,
	rax: 0x1f8,
	pat: 0x268,
	rcx: 0x308,
	rdx: 0x310,
	rbx: 0x318,
	rbp: 0x328,
	rsi: 0x330,
	rdi: 0x338,
	r8: 0x340,
	r9: 0x348,
	r10: 0x350,
	r11: 0x358,
	r12: 0x360,
	r13: 0x368,
	r14: 0x370,
	r15: 0x378,
	sevFeatures: 0x3b0,
	xcr0: 0x3e8,
} as const;

const CPL_OFFSET = 0xcb;
const MXCSR_OFFSET = 0x408;
const X87_CONTROL_OFFSET = 0x410;

/** The name of a segment register. */
export type SegmentName = keyof typeof SEGMENTS;
/** The name of a 64-bit register. */
export type RegisterName = keyof typeof REGISTERS;

/** A segment register. */
export interface Segment {
	readonly selector: number;
	/** Access rights in VMCB form, 12 bits. */
	readonly attributes: number;
	readonly limit: number;
	readonly base: bigint;
}

/** The state of a processor, as far as a launch sets it; what is left out is zero. */
export interface ProcessorState {
	readonly segments: Readonly<Record<SegmentName, Segment>>;
	readonly registers: Readonly<Partial<Record<RegisterName, bigint>>>;
	readonly cpl?: number;
	readonly mxcsr?: number;
	readonly x87Control?: number;
}

/** Names in the order of the page. */
export const SEGMENT_NAMES = Object.keys(SEGMENTS) as SegmentName[];
export const REGISTER_NAMES = Object.keys(REGISTERS) as RegisterName[];

/** Makes a VMSA page. */
export function vmsaPage(state: ProcessorState): Buffer {
	const page = Buffer.alloc(PAGE_BYTES);
	for (const name of SEGMENT_NAMES) {
		const { selector, attributes, limit, base } = state.segments[name];
		const offset = SEGMENTS[name];
		page.writeUInt16LE(selector, offset);
		page.writeUInt16LE(attributes, offset + 2);
		page.writeUInt32LE(limit, offset + 4);
		page.writeBigUInt64LE(base, offset + 8);
	}
	for (const name of REGISTER_NAMES) page.writeBigUInt64LE(state.registers[name] ?? 0n, REGISTERS[name]);
	page.writeUInt8(state.cpl ?? 0, CPL_OFFSET);
	page.writeUInt32LE(state.mxcsr ?? 0, MXCSR_OFFSET);
	page.writeUInt16LE(state.x87Control ?? 0, X87_CONTROL_OFFSET);
	return page;
}

/** Reads segments and registers of a VMSA page. @param page of PAGE_BYTES */
export function readVmsa(page: Buffer): { segments: Record<SegmentName, Segment>; registers: Record<RegisterName, bigint> } {
	const segments = Object.fromEntries(
		SEGMENT_NAMES.map((name): [SegmentName, Segment] => {
			const offset = SEGMENTS[name];
			const [selector, attributes] = [page.readUInt16LE(offset), page.readUInt16LE(offset + 2)];
			return [name, { selector, attributes, limit: page.readUInt32LE(offset + 4), base: page.readBigUInt64LE(offset + 8) }];
		}),
	) as Record<SegmentName, Segment>;
	const registers = Object.fromEntries(REGISTER_NAMES.map((name) => [name, page.readBigUInt64LE(REGISTERS[name])])) as Record<
		RegisterName,
		bigint
	>;
	return { segments, registers };
}
