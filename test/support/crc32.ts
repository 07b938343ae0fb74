/** The checksum of GPTs and of gzip (IEEE 802.3, reflected); Node.js 20 has none in its `zlib`. */

const TABLE = Uint32Array.from({ length: 256 }, (_, start) => {
	let value = start;
	for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xed_b8_83_20 : value >>> 1;
	return value;
});

/** The CRC-32 of the bytes. */
export function crc32(bytes: Uint8Array): number {
	let sum = 0xff_ff_ff_ff;
	for (const byte of bytes) sum = (TABLE[(sum ^ byte) & 0xff] ?? 0) ^ (sum >>> 8);
	return (sum ^ 0xff_ff_ff_ff) >>> 0;
}
