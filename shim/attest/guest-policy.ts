/** The guest policy, which the firmware enforces from launch on: AMD document 56860, section 4.3. */
import { bitNames, readBits, type NamedBits } from "./named-bits.ts";

/** Bits that may be asked for by name. `debug` and `migrationAgent` open the guest to its host. */
export const GUEST_POLICY_BITS = {
	smt: { bit: 16, title: "may run on a host with SMT" },
	migrationAgent: { bit: 18, title: "may have a migration agent, which can take it to another machine" },
	debug: { bit: 19, title: "may be debugged: the host can read and change its memory" },
	singleSocket: { bit: 20, title: "runs on one socket only" },
	cxl: { bit: 21, title: "may have memory or devices behind CXL" },
	memoryAes256Xts: { bit: 22, title: "needs AES-256-XTS for its memory" },
	raplDisabled: { bit: 23, title: "needs the power meter (RAPL) to be off" },
	ciphertextHidingDram: { bit: 24, title: "needs its ciphertext to be hidden in DRAM" },
	pageSwapDisabled: { bit: 25, title: "its pages can't be moved or swapped by the host" },
} as const satisfies NamedBits<string>;

/** The name of a policy bit. */
export type GuestPolicyBit = keyof typeof GUEST_POLICY_BITS;

/** All names, in the order of the bits. */
export const GUEST_POLICY_NAMES = bitNames<GuestPolicyBit>(GUEST_POLICY_BITS);

/** A guest policy, taken apart. */
export interface GuestPolicy {
	readonly raw: bigint;
	/** The least firmware ABI version that the guest accepts. */
	readonly abiMajor: number;
	readonly abiMinor: number;
	readonly bits: Readonly<Record<GuestPolicyBit, boolean>>;
}

const RESERVED_ONE = 1n << 17n;

/** Takes a policy apart. */
export function decodeGuestPolicy(raw: bigint): GuestPolicy {
	const bits = readBits(GUEST_POLICY_BITS, raw);
	return { raw, abiMinor: Number(raw & 0xffn), abiMajor: Number((raw >> 8n) & 0xffn), bits };
}

/** What is malformed about a policy, or undefined. Bits of a later specification count: they may loosen what the guest is protected from. */
export function guestPolicyProblem(raw: bigint): string | undefined {
	if ((raw & RESERVED_ONE) === 0n) return "bit 17 of the guest policy must be one";
	const highest = Math.max(...GUEST_POLICY_NAMES.map((name) => GUEST_POLICY_BITS[name].bit));
	const unknown = raw >> BigInt(highest + 1);
	return unknown === 0n ? undefined : `the guest policy 0x${raw.toString(16)} has bits above ${highest}, which this version does not know`;
}
