/** `snpctl policy check`: whether a policy lets a pod run, tried without a VM. */

import { stdout } from "node:process";

import * as v from "valibot";

import { ShimError } from "../base/errors.ts";
import { decide } from "../policy/engine.ts";
import type { Decision, PolicyRequest } from "../policy/engine.ts";
import { explanation } from "../policy/explain.ts";
import { ALLOW_NOTHING, samplePod } from "../policy/generate.ts";
import { policyIn } from "./policy-file.ts";
import { lookUpImages, manifestFiles, POLICY_USAGE, wantedPods } from "./policy-input.ts";
import type { PolicyValues } from "./policy-input.ts";
import { readInput } from "./read-input.ts";
import { sampleRequests } from "./sample-requests.ts";

const MAX_POLICY_BYTES = 16 * 1024 * 1024;
const MAX_REQUESTS_BYTES = 64 * 1024 * 1024;
const DECIDE_MS = 60_000;

const RequestSchema = v.looseObject({ name: v.string(), input: v.unknown() });
const ContainerNameSchema = v.looseObject({
	input: v.looseObject({ OCI: v.looseObject({ Annotations: v.record(v.string(), v.string()) }) }),
});

/** The policy that was named. @throws ShimError `call.invalid` when none was */
export async function namedPolicy({ policy }: PolicyValues): Promise<{ readonly name: string; readonly text: string }> {
	if (policy === undefined) throw new ShimError("call.invalid", "no policy is named", { remedy: POLICY_USAGE });
	return policyIn(policy, (await readInput(policy, "the policy", MAX_POLICY_BYTES)).toString("utf8"));
}

/** Requests of a file: one JSON document a line, or a list. @throws ShimError `policy.input` that names the line */
export async function readRequests(file: string): Promise<PolicyRequest[]> {
	const text = (await readInput(file, "the requests", MAX_REQUESTS_BYTES)).toString("utf8").trim();
	const whole = parsedJson(text);
	const all: readonly unknown[] = Array.isArray(whole) ? whole : whole === undefined ? text.split("\n").map(parsedJson) : [whole];
	return all.map((one, index) => {
		const found = v.safeParse(RequestSchema, one);
		if (found.success) return { name: found.output.name, input: found.output.input };
		throw new ShimError(
			"policy.input",
			`${file}: request ${index + 1} is no JSON of the form {"name":"CreateContainerRequest","input":{...}}`,
		);
	});
}

function parsedJson(text: string): unknown {
	try {
		return JSON.parse(text) as unknown;
	} catch {
		return undefined;
	}
}

/** Runs `snpctl policy check`. @returns the exit status */
export async function check(names: readonly string[], values: PolicyValues): Promise<number> {
	const policy = await namedPolicy(values);
	if (values.requests !== undefined) return await show([["", await readRequests(values.requests)]], policy, values);
	const { manifest, pods } = wantedPods(await manifestFiles(names), values.pod);
	const images = await lookUpImages(pods, values);
	const samples = pods.map((pod): [string, PolicyRequest[]] => {
		const sample = samplePod(pod, { manifest, images, allow: ALLOW_NOTHING, pinSecrets: true });
		return [`${pod.where}: `, sampleRequests(sample)];
	});
	return await show(samples, policy, values);
}

async function show(
	groups: readonly (readonly [string, readonly PolicyRequest[]])[],
	policy: { readonly name: string; readonly text: string },
	{ json }: PolicyValues,
): Promise<number> {
	const flat = groups.flatMap(([where, requests]) => requests.map((request) => ({ where, request })));
	const decisions = await decide(
		policy,
		flat.map(({ request }) => request),
		{ timeoutMs: DECIDE_MS },
	);
	const results = flat.map(({ where, request }, index) => ({ where, request, decision: decisions[index] as Decision }));
	const denied = results.filter(({ decision }) => !decision.allowed);
	if (json === true) {
		const shown = results.map(({ request, decision }) => ({ name: request.name, container: containerOf(request), ...decision }));
		stdout.write(`${JSON.stringify({ allowed: denied.length === 0, decisions: shown })}\n`);
		return denied.length === 0 ? 0 : 1;
	}
	for (const { where, request, decision } of denied) {
		const container = containerOf(request);
		stdout.write(`${where}${container === "" ? "" : `container ${container}: `}${explanation(request.name, decision)}\n\n`);
	}
	stdout.write(`${results.length - denied.length} of ${results.length} requests are allowed\n`);
	return denied.length === 0 ? 0 : 1;
}

function containerOf(request: PolicyRequest): string {
	const found = v.safeParse(ContainerNameSchema, request);
	return found.success ? (found.output.input.OCI.Annotations["io.kubernetes.cri.container-name"] ?? "") : "";
}
