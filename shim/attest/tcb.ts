/**
 * TCB_VERSION, the security version numbers of what runs below a guest: AMD document 56860 ("SEV Secure Nested Paging Firmware ABI Specification"),
 * section 2.2. Milan and Genoa have one layout, Turin another with the FMC (boot ROM firmware) in front.
 */

import type { ProductLine } from "./product.ts";

/** Size of a TCB_VERSION in bytes. */
export const TCB_BYTES = 8;

/** The parts of a TCB version, each a security version number from 0 to 255. */
export interface TcbVersion {
	/** Only on Turin. */
	readonly fmc?: number;
	readonly bootloader: number;
	readonly tee: number;
	readonly snp: number;
	readonly microcode: number;
}

/** The name of a part. */
export type TcbPart = keyof TcbVersion;

/** Where each part lies in the eight bytes. */
const LAYOUTS: Readonly<Record<ProductLine, Readonly<Partial<Record<TcbPart, number>>>>> = {
	Milan: { bootloader: 0, tee: 1, snp: 6, microcode: 7 },
	Genoa: { bootloader: 0, tee: 1, snp: 6, microcode: 7 },
	Turin: { fmc: 0, bootloader: 1, tee: 2, snp: 3, microcode: 7 },
};

/** Some parts of a TCB version, as in a minimum. */
export type TcbParts = { readonly [Part in TcbPart]?: number | undefined };

/** All parts, in the order in which they are said. */
export const TCB_PARTS: readonly TcbPart[] = ["fmc", "bootloader", "tee", "snp", "microcode"];

/** Takes the eight bytes of a TCB_VERSION apart. @param raw of TCB_BYTES */
export function decodeTcb(raw: Buffer, product: ProductLine): TcbVersion {
	const layout = LAYOUTS[product];
	const part = (name: TcbPart): number => raw[layout[name] ?? 0] ?? 0;
	return {
		...(layout.fmc === undefined ? {} : { fmc: part("fmc") }),
		bootloader: part("bootloader"),
		tee: part("tee"),
		snp: part("snp"),
		microcode: part("microcode"),
	};
}

/** One line for people: `bootloader 3, tee 0, snp 8, microcode 115`. */
export function describeTcb(tcb: TcbParts): string {
	return TCB_PARTS.flatMap((name) => (tcb[name] === undefined ? [] : [`${name} ${tcb[name]}`])).join(", ");
}

/**
 * The parts of `tcb` that are below `minimum`, which may name some parts only.
 * A minimum for a part that the processor does not have counts as not reached.
 */
export function partsBelow(tcb: TcbVersion, minimum: TcbParts): TcbPart[] {
	return TCB_PARTS.filter((name) => minimum[name] !== undefined && (tcb[name] ?? -1) < minimum[name]);
}
