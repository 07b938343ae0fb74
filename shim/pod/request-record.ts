/** What a pod's guest was asked for, kept in the pod's folder: for owners who make policies, and for finding faults. */

import { appendFileSync } from "node:fs";
import { join } from "node:path";

import type { NamedRequest } from "../agent/request-json.ts";
import { explain } from "../base/errors.ts";
import type { Log } from "../base/log.ts";

const FILE = "requests.jsonl";
/** The folder is on a tmpfs that all pods share. */
const MAX_BYTES = 4 * 1024 * 1024;

/** Gives what appends each request, as one line of JSON, to `requests.jsonl` in the pod's folder, up to 4 MiB. */
export function requestRecorder(folder: string, log: Log): (request: NamedRequest) => void {
	let left = MAX_BYTES;
	return (request) => {
		if (left <= 0) return;
		const line = `${JSON.stringify(request)}\n`;
		left -= line.length;
		try {
			appendFileSync(join(folder, FILE), line, { mode: 0o600 });
		} catch (error) {
			left = 0;
			log.warn("requests to the guest are not kept any more", { reason: explain(error) });
		}
	};
}
