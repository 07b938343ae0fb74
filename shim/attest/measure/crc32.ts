/** CRC-32 (ISO-HDLC), the checksum of IGVM's headers. Node.js has one in zlib only since version 22. */

const TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
	let value = index;
	for (let bit = 0; bit < 8; bit++) value = (value & 1) === 1 ? (value >>> 1) ^ 0xedb8_8320 : value >>> 1;
	return value;
});

/** The checksum of the parts one after another. */
export function crc32(...parts: readonly Buffer[]): number {
	let crc = 0xffff_ffff;
	for (const part of parts) {
		for (const byte of part) crc = (crc >>> 8) ^ (TABLE[(crc ^ byte) & 0xff] ?? 0);
	}
	return (crc ^ 0xffff_ffff) >>> 0;
}
