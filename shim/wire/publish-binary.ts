/** Events without ttrpc: containerd's own executable, called as `containerd --address A publish --topic T --namespace N`. */

import { spawn } from "node:child_process";
import { messageOf, ShimError } from "../base/errors.ts";

/** The arguments of one call. */
export interface PublishCall {
	readonly binary: string;
	readonly address: string;
	readonly topic: string;
	readonly namespace: string;
}

const RUN_MS = 10_000;
const MAX_STDERR_CHARACTERS = 4096;

/**
 * Runs the publish binary once, with an encoded `google.protobuf.Any` on its standard input.
 * @throws ShimError `internal` when it can't be run, fails, or takes longer than ten seconds (it is killed then)
 */
export function runPublishBinary(call: PublishCall, any: Uint8Array, signal: AbortSignal): Promise<void> {
	return new Promise((resolve, reject) => {
		const args = ["--address", call.address, "publish", "--topic", call.topic, "--namespace", call.namespace];
		const fail = (why: string): void => reject(new ShimError("internal", `publishing ${call.topic} with ${call.binary} failed: ${why}`));
		const late = AbortSignal.timeout(RUN_MS);
		const child = spawn(call.binary, args, {
			stdio: ["pipe", "ignore", "pipe"],
			env: { PATH: process.env["PATH"] ?? "" },
			killSignal: "SIGKILL",
			signal: AbortSignal.any([signal, late]),
		});
		let stderr = "";
		child.stderr.setEncoding("utf8").on("data", (text: string) => {
			stderr = (stderr + text).slice(-MAX_STDERR_CHARACTERS);
		});
		child.once("error", (error) => fail(late.aborted ? `no end within ${RUN_MS} ms` : messageOf(error)));
		child.once("close", (code, killed) => {
			if (code === 0) resolve();
			else fail(`${killed === null ? `exit code ${code}` : `killed by ${killed}`}: ${stderr.trim()}`);
		});
		// The child may end without reading: its exit code says what happened.
		child.stdin.on("error", () => undefined);
		child.stdin.end(any);
	});
}
