/** GUIDs in the byte order in which firmware stores them: the first three groups little-endian. */

/** @param text as `9438d606-4f22-4cc9-b479-a793d411fd21` */
export function guidBytes(text: string): Buffer {
	const bytes = Buffer.from(text.replaceAll("-", ""), "hex");
	bytes.subarray(0, 4).reverse();
	bytes.subarray(4, 6).reverse();
	bytes.subarray(6, 8).reverse();
	return bytes;
}
