/** AMD's product lines with SEV-SNP: which processors belong to one, and how its TCB versions are laid out. */

/** A line of processors that shares one root key. Bergamo and Siena belong to Genoa's. */
export type ProductLine = "Milan" | "Genoa" | "Turin";

/** All lines whose roots are known. */
export const PRODUCT_LINES: readonly ProductLine[] = ["Milan", "Genoa", "Turin"];

/**
 * The line of a processor by CPUID Fn0000_0001_EAX, family and model each with their extended part added.
 * @returns undefined for a processor whose roots are not known
 */
export function productOfCpu(family: number, model: number): ProductLine | undefined {
	if (family === 0x19 && model <= 0x0f) return "Milan";
	if (family === 0x19 && ((model >= 0x10 && model <= 0x1f) || (model >= 0xa0 && model <= 0xaf))) return "Genoa";
	if (family === 0x1a && model <= 0x11) return "Turin";
	return undefined;
}

/** The line of that name, as it stands in certificates (`Milan`, `Milan-B0`). */
export function productNamed(name: string): ProductLine | undefined {
	const [line] = name.split("-");
	return PRODUCT_LINES.find((known) => known === line);
}
