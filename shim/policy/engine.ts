/** `snp-policy`, the program that decides by a policy as the guest does (docs/contracts.md, "Policies"). */

import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import * as v from "valibot";

import { withDeadlineAndEnd } from "../base/deadline.ts";
import { messageOf, ShimError } from "../base/errors.ts";

const PROGRAM = "snp-policy";
const MAX_ANSWER_BYTES = 16 * 1024 * 1024;
const MAX_STDERR_CHARACTERS = 4096;
const END_TIMEOUT_MS = 5_000;
/** Requests of one call: the program's bound. */
export const MAX_REQUESTS = 4096;

/** A request to the guest, in the form that a policy has for its input. */
export interface PolicyRequest {
	/** The request's message: `CreateContainerRequest`. */
	readonly name: string;
	readonly input: unknown;
}

const ReasonSchema = v.object({
	/** The field, as in `OCI.Process.Args[1]`. */
	path: v.string(),
	expected: v.optional(v.unknown()),
	got: v.optional(v.unknown()),
	/** Which of the policy's rules it was. */
	rule: v.optional(v.string(), ""),
	/** The entry of the policy; empty for requests that are of no container. */
	container: v.optional(v.string(), ""),
});

/** One thing that a policy does not want of a request. */
export type Reason = v.InferOutput<typeof ReasonSchema>;

const AnswerSchema = v.union([
	v.object({
		decisions: v.array(
			v.object({
				allowed: v.boolean(),
				reasons: v.array(v.unknown()),
				failure: v.optional(v.string()),
			}),
		),
	}),
	v.object({ error: v.object({ message: v.string(), line: v.optional(v.number()), column: v.optional(v.number()) }) }),
]);

/** What a policy says of one request. */
export interface Decision {
	readonly allowed: boolean;
	/** Empty for a policy that does not explain itself. */
	readonly reasons: readonly Reason[];
	/** Why there is no answer of the policy's. */
	readonly failure: string | undefined;
}

/** Bounds of a call. */
export interface EngineBounds {
	readonly timeoutMs: number;
	readonly signal?: AbortSignal | undefined;
}

/**
 * Has a policy decide on requests, in their order.
 * @param name the policy's, for errors: a file
 * @throws ShimError `policy.invalid` with line and column for a text that is no policy; `policy.program`, `wait.deadline`, `wait.canceled`
 */
export async function decide(
	policy: { readonly name: string; readonly text: string },
	requests: readonly PolicyRequest[],
	bounds: EngineBounds,
): Promise<Decision[]> {
	const what = `the decision of ${policy.name}`;
	const order = JSON.stringify({ policy: policy.text, requests });
	const wait = { what, timeoutMs: bounds.timeoutMs, signal: bounds.signal, graceMs: END_TIMEOUT_MS };
	const answer = v.safeParse(AnswerSchema, parseJson(await withDeadlineAndEnd(wait, (signal) => run(order, signal))));
	if (!answer.success) throw new ShimError("policy.program", `${PROGRAM} gave an answer of another form`);
	if ("error" in answer.output) {
		const { message, line, column } = answer.output.error;
		const place = line === undefined ? "" : `:${line}:${column ?? 1}`;
		throw new ShimError("policy.invalid", `${policy.name}${place}: ${message}`);
	}
	const { decisions } = answer.output;
	if (decisions.length !== requests.length)
		throw new ShimError("policy.program", `${PROGRAM} gave ${decisions.length} decisions for ${requests.length}`);
	return decisions.map(({ allowed, reasons, failure }) => ({ allowed, reasons: reasons.flatMap(asReason), failure }));
}

function asReason(value: unknown): Reason[] {
	const found = v.safeParse(ReasonSchema, value);
	return found.success ? [found.output] : [];
}

function run(order: string, signal: AbortSignal): Promise<string> {
	const program = findProgram();
	return new Promise((resolve, reject) => {
		const child = spawn(program, [], { stdio: ["pipe", "pipe", "pipe"], signal, killSignal: "SIGKILL", cwd: "/", env: {} });
		const chunks: Buffer[] = [];
		let [size, stderr] = [0, ""];
		child.stdout.on("data", (chunk: Buffer) => {
			size += chunk.length;
			if (size > MAX_ANSWER_BYTES) child.kill("SIGKILL");
			else chunks.push(chunk);
		});
		child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr = (stderr + text).slice(-MAX_STDERR_CHARACTERS)));
		// A program that has failed reads no more: its own message says why.
		child.stdin.on("error", () => undefined);
		child.stdin.end(order);
		child.on("error", (error) => child.pid === undefined && reject(new ShimError("policy.program", `${program}: ${messageOf(error)}`)));
		child.on("close", (code, killed) => {
			if (size > MAX_ANSWER_BYTES) reject(new ShimError("policy.program", `${PROGRAM} answers with more than ${MAX_ANSWER_BYTES} bytes`));
			else if (code === 0) resolve(Buffer.concat(chunks).toString("utf8"));
			else reject(new ShimError("policy.program", `${PROGRAM}: ${stderr.trim() || `it ended with ${killed ?? code}`}`));
		});
	});
}

function parseJson(text: string): unknown {
	try {
		return JSON.parse(text) as unknown;
	} catch {
		return undefined;
	}
}

/** Beside the program in `dist/bin`; for a program that runs from the sources, where the build puts it. */
function findProgram(): string {
	const here = dirname(fileURLToPath(import.meta.url));
	const places = [join(here, PROGRAM), join(here, "..", "..", "dist", "bin", PROGRAM)];
	const place = places.find((path) => existsSync(path));
	if (place === undefined) throw new ShimError("policy.program", `${PROGRAM} is neither at ${places.join(" nor at ")}`);
	return place;
}
