/** The VMM's standard output and error: a file, since it must outlive snpd and never block the VMM, kept small from outside. */

import { watch } from "node:fs";
import { open } from "node:fs/promises";

import { errnoOf } from "../base/errors.ts";

/** Above this size the file is cut to its last `KEPT_BYTES`. */
export const MAX_LOG_BYTES = 1024 * 1024;
const KEPT_BYTES = 256 * 1024;
const TAIL_BYTES = 2048;

/**
 * Keeps the file small for as long as it grows. The writer must append (`O_APPEND`); a line written during the cut may be lost.
 * @returns how to stop
 */
export function boundLog(path: string): () => void {
	let busy = false;
	const watcher = watch(path, { persistent: false }, () => {
		if (busy) return;
		busy = true;
		// A failure leaves the file as it is; the next write tries again.
		cutLog(path).then(
			() => (busy = false),
			() => (busy = false),
		);
	});
	watcher.on("error", () => undefined);
	return () => watcher.close();
}

/** Cuts the file to its end when it is too large. */
export async function cutLog(path: string): Promise<void> {
	const file = await open(path, "r+");
	try {
		const { size } = await file.stat();
		if (size <= MAX_LOG_BYTES) return;
		const kept = Buffer.alloc(KEPT_BYTES);
		const { bytesRead } = await file.read(kept, 0, KEPT_BYTES, size - KEPT_BYTES);
		await file.truncate(0);
		await file.write(kept, 0, bytesRead, 0);
	} finally {
		await file.close();
	}
}

/** The end of the log, for error messages; empty when there is none. */
export async function logTail(path: string): Promise<string> {
	try {
		const file = await open(path, "r");
		try {
			const { size } = await file.stat();
			const length = Math.min(size, TAIL_BYTES);
			const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, size - length);
			return buffer.toString("utf8", 0, bytesRead).trim();
		} finally {
			await file.close();
		}
	} catch (error) {
		if (errnoOf(error) === "ENOENT") return "";
		throw error;
	}
}
