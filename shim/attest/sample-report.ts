/**
 * Reports of sample mode: in the form of a processor's, but signed by a key that is published (`guest/agent/keys/sample-insecure.pem`). Anybody can make
 * them, so they prove nothing; they are for trials of what comes after the proof.
 */

import { createPublicKey } from "node:crypto";
import type { KeyObject } from "node:crypto";

import { verifyAmdSignature } from "./amd-ecdsa.ts";
import { Checklist, failed, notAsked, passed } from "./checklist.ts";
import type { Outcome } from "./checklist.ts";
import type { Expectations } from "./expectations.ts";
import { checkLateHostData, checkLateReportData } from "./late-binding.ts";
import type { LateBinding } from "./late-binding.ts";
import { SIGNED_BYTES } from "./report.ts";
import type { Report } from "./report.ts";
import type { Verdict } from "./verify.ts";

/** The public half of the published key. */
const SAMPLE_KEY = `-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEi6D6vqjClRiKkZmD89U9mjEh/L0Z3knV
C85CkghxOQ8o+pXYsjU1tEjp3ooSGuDeuSpFwyolpACTeS6xsG9jJLWlwI0xcPJJ
PKI5165hXkhcABCZEwWX1p7/DL2L2h9Z
-----END PUBLIC KEY-----
`;

/** What is said wherever such a report is taken. */
export const SAMPLE_WARNING = "INSECURE: sample mode proves nothing, its key is published";

/** True when a report is signed with the published key. */
export function isSampleReport(report: Report, key: KeyObject = createPublicKey(SAMPLE_KEY)): boolean {
	return verifyAmdSignature(key, report.bytes.subarray(0, SIGNED_BYTES), report.signature);
}

/**
 * Checks a report of sample mode as far as there is something to check.
 * @param further checks that follow
 * @param late for a guest whose policy was bound late; without it such a one is refused
 */
export function verifySample(
	report: Report,
	{ hostData, reportData }: Expectations,
	further: (list: Checklist) => void,
	late?: LateBinding,
): Verdict {
	const list = new Checklist();
	list.check("evidence", "report.format", "the report is well formed", () => {
		const [problem] = report.problems;
		return problem === undefined ? passed(`version ${report.version}`) : failed("a report's form", problem, "ask the guest for a new one");
	});
	list.check("evidence", "report.signature", "the published key of sample mode signed the report", () =>
		isSampleReport(report)
			? passed(SAMPLE_WARNING)
			: failed("a signature by the published key", "another signature", "verify reports of processors without --sample"),
	);
	list.check(
		"expectation",
		"host-data",
		"what the host gave along at launch",
		() => checkLateHostData(report, late) ?? oneOf(report.hostData, hostData, "--initdata"),
	);
	list.check("expectation", "report-data", "what the guest put into the report", () =>
		late === undefined
			? oneOf(report.reportData, reportData === undefined ? undefined : [reportData], "--report-data")
			: checkLateReportData(report, late),
	);
	further(list);
	return { verified: list.failure === undefined, failure: list.failure, checks: list.checks, product: undefined };
}

function oneOf(got: Buffer, expected: readonly Buffer[] | undefined, ask: string): Outcome {
	if (expected === undefined) return notAsked(ask);
	const hex = got.toString("hex");
	if (expected.some((one) => one.equals(got))) return passed(hex);
	return failed(expected.map((one) => one.toString("hex")).join(", "), hex, "the guest was given something else: do not trust it");
}
