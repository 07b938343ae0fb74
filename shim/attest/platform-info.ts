/** PLATFORM_INFO, how the machine is set up: AMD document 56860, section 7.3. */

/** Bits that may be asked for by name. */
export const PLATFORM_BITS = {
	smt: { bit: 0, title: "SMT is on" },
	tsme: { bit: 1, title: "transparent memory encryption (TSME) is on" },
	ecc: { bit: 2, title: "the memory has ECC" },
	raplDisabled: { bit: 3, title: "the power meter (RAPL) is off" },
	ciphertextHidingDram: { bit: 4, title: "ciphertext is hidden in DRAM" },
	aliasCheckComplete: { bit: 5, title: "memory was checked for aliases since the last reset" },
	tio: { bit: 7, title: "trusted I/O (SEV-TIO) is on" },
} as const satisfies Record<string, { bit: number; title: string }>;

/** The name of a platform bit. */
export type PlatformBit = keyof typeof PLATFORM_BITS;

/** All names, in the order of the bits. */
export const PLATFORM_NAMES = Object.keys(PLATFORM_BITS) as PlatformBit[];

/** Takes PLATFORM_INFO apart. Bits that this version does not know are in `unknown`. */
export function decodePlatformInfo(raw: bigint): {
	readonly raw: bigint;
	readonly bits: Readonly<Record<PlatformBit, boolean>>;
	readonly unknown: bigint;
} {
	const masks = PLATFORM_NAMES.map((name) => [name, 1n << BigInt(PLATFORM_BITS[name].bit)] as const);
	const bits = Object.fromEntries(masks.map(([name, mask]) => [name, (raw & mask) !== 0n])) as Record<PlatformBit, boolean>;
	return { raw, bits, unknown: masks.reduce((rest, [, mask]) => rest & ~mask, raw) };
}
