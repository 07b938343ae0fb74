/** Damage to files, as a node could do it. */
import { closeSync, openSync, readSync, writeSync } from "node:fs";

/** Changes one byte of a file where it lies: the bits of `mask` are turned over, so that a second call mends it. */
export function flip(path: string, at: number, mask: number): void {
	const file = openSync(path, "r+");
	try {
		const byte = Buffer.alloc(1);
		readSync(file, byte, 0, 1, at);
		byte[0] = (byte[0] ?? 0) ^ mask;
		writeSync(file, byte, 0, 1, at);
	} finally {
		closeSync(file);
	}
}
