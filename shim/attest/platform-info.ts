/** PLATFORM_INFO, how the machine is set up: AMD document 56860, section 7.3. */
import { bitNames, otherBits, readBits, type NamedBits } from "./named-bits.ts";

/** Bits that may be asked for by name. */
export const PLATFORM_BITS = {
	smt: { bit: 0, title: "SMT is on" },
	tsme: { bit: 1, title: "transparent memory encryption (TSME) is on" },
	ecc: { bit: 2, title: "the memory has ECC" },
	raplDisabled: { bit: 3, title: "the power meter (RAPL) is off" },
	ciphertextHidingDram: { bit: 4, title: "ciphertext is hidden in DRAM" },
	aliasCheckComplete: { bit: 5, title: "memory was checked for aliases since the last reset" },
	tio: { bit: 7, title: "trusted I/O (SEV-TIO) is on" },
} as const satisfies NamedBits<string>;

/** The name of a platform bit. */
export type PlatformBit = keyof typeof PLATFORM_BITS;

/** All names, in the order of the bits. */
export const PLATFORM_NAMES = bitNames<PlatformBit>(PLATFORM_BITS);

/** Takes PLATFORM_INFO apart. Bits that this version does not know are in `unknown`. */
export function decodePlatformInfo(raw: bigint): {
	readonly raw: bigint;
	readonly bits: Readonly<Record<PlatformBit, boolean>>;
	readonly unknown: bigint;
} {
	return { raw, bits: readBits(PLATFORM_BITS, raw), unknown: otherBits(PLATFORM_BITS, raw) };
}
