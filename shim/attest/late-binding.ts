/**
 * Policies that are bound late (docs/adr/0012): HOST_DATA is that of every guest that waits for its pod, and REPORT_DATA is a hash over the question and the digest of
 * the initdata that was bound. Pure.
 */

import { createHash } from "node:crypto";

import { BIND_ONLY_TOML } from "../base/bind-only.ts";
import { ShimError } from "../base/errors.ts";
import { failed, passed } from "./checklist.ts";
import type { Outcome } from "./checklist.ts";
import type { Expectations } from "./expectations.ts";
import type { Report } from "./report.ts";

/** No other use of SHA-512 begins so. */
const DOMAIN = "containerd-shim-snp late-bound report data 1\n";

/** HOST_DATA of guests that wait for their pod. */
export const BIND_ONLY_HOST_DATA: Buffer = createHash("sha256").update(BIND_ONLY_TOML).digest();

/** What is expected of a guest whose policy was bound late. */
export interface LateBinding {
	/** What was asked with: 64 bytes. */
	readonly question: Buffer;
	/** Digests of initdata, one of which must be bound: 32 bytes each. */
	readonly initdata: readonly Buffer[];
	/** What the guest says is bound, which nothing proves; undefined when it says nothing. */
	readonly claimed: string | undefined;
}

/** REPORT_DATA of a guest with this initdata bound, when it is asked with `question`. */
export function lateReportData(question: Buffer, initdata: Buffer): Buffer {
	return createHash("sha512").update(DOMAIN).update(question).update(initdata).digest();
}

/**
 * Turns what is expected of a guest with a policy from its launch into what is expected of one with the same policy bound late.
 * @throws ShimError `call.invalid` when nothing would tie the report to a policy
 */
export function lateBinding({ hostData, reportData }: Expectations, claimed: string | undefined): LateBinding {
	if (hostData === undefined || reportData === undefined)
		throw new ShimError("call.invalid", "--late-bound needs the initdata's digest and the question that the guest was asked with", {
			remedy: "give --initdata (or --host-data), and --report-data: without both nothing says which policy was bound",
		});
	return { question: reportData, initdata: hostData, claimed };
}

/** Whether the guest's HOST_DATA is that of guests that wait for their pod, when it must be and only then. */
export function checkLateHostData({ hostData }: Report, late: LateBinding | undefined): Outcome | undefined {
	const waits = hostData.equals(BIND_ONLY_HOST_DATA);
	if (late === undefined)
		return waits
			? failed(
					"a guest that was started with its pod's initdata",
					`one whose policy was bound later (HOST_DATA ${hostData.toString("hex")})`,
					"--late-bound takes it, with --initdata and --report-data: docs/attestation.md says what that means",
				)
			: undefined;
	if (waits) return passed(`${hostData.toString("hex")}, of guests that take one policy later`);
	return failed(
		`${BIND_ONLY_HOST_DATA.toString("hex")}, of guests that take one policy later`,
		hostData.toString("hex"),
		"it was started with an initdata of its own: verify it without --late-bound",
	);
}

/** Whether REPORT_DATA covers the question and an initdata that is expected. */
export function checkLateReportData({ reportData }: Report, { question, initdata, claimed }: LateBinding): Outcome {
	const bound = initdata.find((digest) => lateReportData(question, digest).equals(reportData));
	if (bound !== undefined) return passed(`the question, and the bound initdata ${bound.toString("hex")}`);
	const wanted = initdata[0] ?? Buffer.alloc(0);
	const other = claimed !== undefined && !initdata.some((digest) => digest.toString("hex") === claimed);
	return failed(
		`${lateReportData(question, wanted).toString("hex")}, over the question and the initdata ${wanted.toString("hex")}`,
		reportData.toString("hex"),
		other
			? `another policy is bound: the guest says that its initdata is ${claimed}`
			: "another policy is bound, or the report was not made for this question: ask again with a new nonce",
	);
}
