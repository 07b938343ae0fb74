/** Where a daemon's log goes: a descriptor that may refuse, such as a file on a full tmpfs or a pipe that nobody reads. */

import { writeSync } from "node:fs";

import { messageOf } from "./errors.ts";
import type { LogSink } from "./log.ts";

/**
 * A sink that writes to a descriptor and never throws: whoever logs must not fail for want of room. Lines that can't be written are counted,
 * and the count stands before the first one that can be written again.
 */
export function descriptorSink(fd: number): LogSink {
	let lost = 0;
	let reason = "";
	/** The last line was written in part. */
	let torn = false;
	return (line) => {
		const notice = lost === 0 ? "" : `${torn ? "\n" : ""}${noticeOf(lost, reason)}`;
		const bytes = Buffer.from(notice + line);
		let written = 0;
		try {
			while (written < bytes.length) written += writeSync(fd, bytes, written);
			lost = 0;
			torn = false;
		} catch (error) {
			lost = written >= Buffer.byteLength(notice) ? 1 : lost + 1;
			torn ||= written > 0;
			reason = messageOf(error);
		}
	};
}

function noticeOf(lines: number, reason: string): string {
	return `${JSON.stringify({ time: new Date().toISOString(), level: "warn", message: "lines of this log could not be written", lines, reason })}\n`;
}
