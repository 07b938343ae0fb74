/** Where a daemon's log goes: a descriptor that may refuse, such as a file on a full tmpfs or a pipe that nobody reads. */

import { closeSync, fstatSync, ftruncateSync, openSync, readSync, writeSync } from "node:fs";

import { messageOf } from "./errors.ts";
import type { LogSink } from "./log.ts";

/** Above this size a plain file is cut to its last `KEPT_BYTES`: the log of a daemon that lives for months may lie on a tmpfs. */
const MAX_FILE_BYTES = 1024 * 1024;
const KEPT_BYTES = 256 * 1024;
/** How often the size is looked at. */
const LOOK_BYTES = 64 * 1024;

/**
 * A sink that writes to a descriptor and never throws: whoever logs must not fail for want of room. Lines that can't be written are counted,
 * and the count stands before the first one that can be written again. A plain file, which must be open for appending, is kept small.
 */
export function descriptorSink(fd: number): LogSink {
	let lost = 0;
	let reason = "";
	/** The last line was written in part. */
	let torn = false;
	let unlooked = 0;
	return (line) => {
		const notice = lost === 0 ? "" : `${torn ? "\n" : ""}${noticeOf(lost, reason)}`;
		const bytes = Buffer.from(notice + line);
		let written = 0;
		try {
			while (written < bytes.length) written += writeSync(fd, bytes, written);
			lost = 0;
			torn = false;
			unlooked += written;
			if (unlooked >= LOOK_BYTES) {
				unlooked = 0;
				cutFile(fd);
			}
		} catch (error) {
			lost = written >= Buffer.byteLength(notice) ? 1 : lost + 1;
			torn ||= written > 0;
			reason = messageOf(error);
		}
	};
}

/** Cuts a plain file that is too large to its end, from a whole line on. One that can't be cut grows until it can. */
function cutFile(fd: number): void {
	try {
		cutToEnd(fd);
	} catch {
		// What matters is written.
	}
}

function cutToEnd(fd: number): void {
	const stats = fstatSync(fd);
	if (!stats.isFile() || stats.size <= MAX_FILE_BYTES) return;
	const kept = Buffer.alloc(KEPT_BYTES);
	// The descriptor itself may be for writing only.
	const reader = openSync(`/proc/self/fd/${fd}`, "r");
	try {
		readSync(reader, kept, 0, KEPT_BYTES, stats.size - KEPT_BYTES);
	} finally {
		closeSync(reader);
	}
	ftruncateSync(fd);
	writeSync(fd, kept, kept.indexOf("\n") + 1);
}

function noticeOf(lines: number, reason: string): string {
	return `${JSON.stringify({ time: new Date().toISOString(), level: "warn", message: "lines of this log could not be written", lines, reason })}\n`;
}
