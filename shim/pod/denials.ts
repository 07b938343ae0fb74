/**
 * Denials of a confidential pod's guest, explained on the host: the policy is in the initdata that the host gave the guest, and the request is the
 * host's own. Nothing is started before something is denied.
 */

import type { AgentHooks, Denial } from "../agent/client.ts";
import type { NamedRequest } from "../agent/request-json.ts";
import { explain } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Config } from "../config/schema.ts";
import { decide } from "../policy/engine.ts";
import { denialRemedy, denialSentence } from "../policy/explain.ts";
import { parseInitdata, POLICY_ENTRY, unpackInitdata } from "../policy/initdata.ts";
import { readInitdataDisk } from "./initdata-disk.ts";
import { requestRecorder } from "./request-record.ts";

/** How long the explanation may hold a denial back. */
const EXPLAIN_MS = 10_000;
/** Requests that are too large to be explained: the engine's bound. */
const MAX_REQUEST_BYTES = 4 * 1024 * 1024;

/** What a pod gets to know of the requests to its guest. */
export function agentHooks(folder: string, config: Config, log: Log): AgentHooks {
	return {
		onRequest: config.debug.requests ? requestRecorder(folder, log) : undefined,
		onDenied: (request) => explainDenial(folder, request, log),
	};
}

/** Says why the pod's policy denies a request; undefined when that can't be told, and the guest's own words stand. */
async function explainDenial(folder: string, request: NamedRequest, log: Log): Promise<Denial | undefined> {
	try {
		const gzip = await readInitdataDisk(folder);
		if (gzip === undefined) return undefined;
		const text = parseInitdata(unpackInitdata(gzip)).data[POLICY_ENTRY];
		if (text === undefined || JSON.stringify(request).length > MAX_REQUEST_BYTES) return undefined;
		const [decision] = await decide({ name: POLICY_ENTRY, text }, [request], { timeoutMs: EXPLAIN_MS });
		// The guest may know more, as the state that a policy keeps.
		if (decision === undefined || decision.allowed) return undefined;
		return { text: denialSentence(request.name, decision), remedy: denialRemedy(decision.reasons) };
	} catch (error) {
		log.warn("a denial of the guest's policy can't be explained", { request: request.name, reason: explain(error) });
		return undefined;
	}
}
