/** One member of an archive. `name` is relative, without a leading slash; `mode` holds the permission bits. */
export type CpioEntry =
  | { readonly kind: "dir"; readonly name: string; readonly mode: number }
  | { readonly kind: "file"; readonly name: string; readonly mode: number; readonly data: Uint8Array }
  | { readonly kind: "link"; readonly name: string; readonly target: string }
  | { readonly kind: "char"; readonly name: string; readonly mode: number; readonly major: number; readonly minor: number };

/**
 * An uncompressed newc archive of the entries, independent of their order.
 * @throws RangeError for a name that is absolute, there twice, or whose folder is missing
 */
export function cpioArchive(entries: readonly CpioEntry[]): Buffer;
