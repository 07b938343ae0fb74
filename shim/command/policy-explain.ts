/** `snpctl policy explain`: what a denial was, and what to add to the policy. */

import { env, stdout } from "node:process";

import * as v from "valibot";

import { ShimError } from "../base/errors.ts";
import { CONFIG_FILE_VARIABLE, daemonSocket, DEFAULT_CONFIG_FILE } from "../base/names.ts";
import { loadConfig } from "../config/load.ts";
import { decide } from "../policy/engine.ts";
import type { Decision } from "../policy/engine.ts";
import { explanation, readDenial } from "../policy/explain.ts";
import { askDaemon } from "../wire/control-client.ts";
import { namedPolicy, readRequests } from "./policy-check.ts";
import { POLICY_USAGE } from "./policy-input.ts";
import type { PolicyValues } from "./policy-input.ts";

const DECIDE_MS = 60_000;
const DenialSchema = v.object({ denial: v.nullable(v.object({ text: v.string() })) });

/** Runs `snpctl policy explain`. @returns the exit status: 0 for an explanation */
export async function explain(words: readonly string[], values: PolicyValues): Promise<number> {
	const file = values.request ?? values.requests;
	if (file !== undefined) {
		const policy = await namedPolicy(values);
		const requests = await readRequests(file);
		const decisions = await decide(policy, requests, { timeoutMs: DECIDE_MS });
		const denied = requests
			.map(({ name }, index) => ({ name, decision: decisions[index] as Decision }))
			.filter(({ decision }) => !decision.allowed);
		if (values.json === true) stdout.write(`${JSON.stringify(denied.map(({ name, decision }) => ({ name, ...decision })))}\n`);
		else if (denied.length === 0) stdout.write("the policy allows it\n");
		else stdout.write(`${denied.map(({ name, decision }) => explanation(name, decision)).join("\n\n")}\n`);
		return 0;
	}
	const text = words.join(" ");
	if (text === "")
		throw new ShimError("call.invalid", "nothing to explain: name a pod, a request, or the denial's text", { remedy: POLICY_USAGE });
	const denial = readDenial(/\s/u.test(text) ? text : await lastDenial(text, values));
	if (denial === undefined) throw new ShimError("policy.input", "the text tells of no denial by a policy");
	const decision: Decision = { allowed: false, reasons: denial.reasons, failure: undefined };
	stdout.write(
		values.json === true ? `${JSON.stringify({ name: denial.name, ...decision })}\n` : `${explanation(denial.name, decision)}\n`,
	);
	return 0;
}

/** The text of a pod's last denial, asked of snpd. */
async function lastDenial(id: string, values: PolicyValues): Promise<string> {
	const file = env[CONFIG_FILE_VARIABLE];
	const stateDir = values["state-dir"] ?? (await loadConfig(file ?? DEFAULT_CONFIG_FILE, { required: file !== undefined })).state_dir;
	const answer = v.safeParse(DenialSchema, await askDaemon(daemonSocket(stateDir), { op: "denial", id }));
	if (!answer.success) throw new ShimError("internal", "snpd's answer is not of the expected form");
	if (answer.output.denial === null) throw new ShimError("policy.input", `nothing was denied to the pod ${id} since snpd's start`);
	return answer.output.denial.text;
}
