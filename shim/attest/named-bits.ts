/** Fields of single bits that have names: the guest policy, PLATFORM_INFO. */

/** Each bit's number, and what it says when it is one. */
export type NamedBits<Name extends string> = Readonly<Record<Name, { readonly bit: number; readonly title: string }>>;

/** The names in a table, in its order. */
export const bitNames = <Name extends string>(table: NamedBits<Name>): Name[] => Object.keys(table) as Name[];

const maskOf = <Name extends string>(table: NamedBits<Name>, name: Name): bigint => 1n << BigInt(table[name].bit);

/** Which of the table's bits are one in `raw`. */
export function readBits<Name extends string>(table: NamedBits<Name>, raw: bigint): Readonly<Record<Name, boolean>> {
	return Object.fromEntries(bitNames(table).map((name) => [name, (raw & maskOf(table, name)) !== 0n])) as Record<Name, boolean>;
}

/** `raw` without the bits that the table names. */
export const otherBits = <Name extends string>(table: NamedBits<Name>, raw: bigint): bigint =>
	bitNames(table).reduce((rest, name) => rest & ~maskOf(table, name), raw);
