/** Asks snpd something over its socket: one CONTROL request, one answer (docs/contracts.md). */

import { createConnection } from "node:net";

import * as v from "valibot";

import { withDeadline } from "../base/deadline.ts";
import { messageOf, ShimError } from "../base/errors.ts";
import { encodeLinkJson, LinkKind, LinkReader } from "./link.ts";

const ANSWER_MS = 30_000;
const answerSchema = v.record(v.string(), v.unknown());

/**
 * Sends a request and waits for its answer.
 * @throws ShimError when snpd does not run, does not answer within 30 s, or says that it failed
 */
export function askDaemon(socketPath: string, request: Record<string, unknown>): Promise<Record<string, unknown>> {
	return withDeadline({ what: `snpd's answer on ${socketPath}`, timeoutMs: ANSWER_MS }, (signal) => exchange(socketPath, request, signal));
}

function exchange(socketPath: string, request: Record<string, unknown>, signal: AbortSignal): Promise<Record<string, unknown>> {
	return new Promise((resolve, reject) => {
		const socket = createConnection(socketPath);
		const reader = new LinkReader();
		const fail = (error: unknown): void => {
			socket.destroy();
			reject(
				error instanceof ShimError
					? error
					: new ShimError("internal", `asking snpd on ${socketPath} failed: ${messageOf(error)}`, {
							cause: error,
							remedy: "does snpd run? it starts with the first pod",
						}),
			);
		};
		signal.addEventListener("abort", () => fail(signal.reason), { once: true });
		socket.on("connect", () => socket.write(encodeLinkJson(LinkKind.control, 1, request)));
		socket.on("error", fail);
		socket.on("end", () => fail(new Error("snpd closed the connection without an answer")));
		socket.on("data", (data) => {
			try {
				for (const frame of reader.push(data)) {
					const answer = v.parse(answerSchema, JSON.parse(Buffer.from(frame.payload).toString("utf8")));
					if (typeof answer.error === "string") throw new ShimError("call.invalid", answer.error, { remedy: "" });
					socket.destroy();
					resolve(answer);
				}
			} catch (error) {
				fail(error);
			}
		});
	});
}
