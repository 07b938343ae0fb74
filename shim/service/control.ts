/** Requests of clients that are no keeper: `delete` of the shim's binary, and snpctl. */

import * as v from "valibot";

import { ShimError } from "../base/errors.ts";
import type { PodNode } from "../pod/node.ts";

const KILLED = 137;

const requestSchema = v.variant("op", [
	v.object({ op: v.literal("delete"), address: v.string(), namespace: v.string(), id: v.string(), bundle: v.optional(v.string(), "") }),
	v.object({ op: v.literal("list") }),
	v.object({ op: v.literal("pool") }),
	v.object({ op: v.literal("timeline"), id: v.string() }),
	v.object({ op: v.literal("denial"), id: v.string() }),
	v.object({ op: v.literal("memory") }),
]);

/**
 * Answers one request.
 * @throws ShimError `call.invalid` for a request of another form
 */
export async function answerControl(node: PodNode, value: unknown): Promise<Record<string, unknown>> {
	const parsed = v.safeParse(requestSchema, value);
	if (!parsed.success) throw new ShimError("call.invalid", `control request: ${parsed.issues[0].message}`);
	const request = parsed.output;
	switch (request.op) {
		case "delete": {
			const result = await node.discard(request.address, request.namespace, request.id);
			const atMs = result?.exitedAtMs ?? Date.now();
			const seconds = Math.floor(atMs / 1000);
			return {
				pid: result?.pid ?? 0,
				exitStatus: result?.exitStatus ?? KILLED,
				exitedAtSeconds: seconds,
				exitedAtNanos: Math.round((atMs - seconds * 1000) * 1_000_000),
			};
		}
		case "list":
			return { pods: node.list() };
		case "pool":
			return { pool: node.pool.summary() };
		case "timeline":
			return { spans: node.timeline(request.id) };
		case "denial":
			return { denial: node.denial(request.id) };
		case "memory":
			return { memory: await node.memory.summary() };
	}
}
