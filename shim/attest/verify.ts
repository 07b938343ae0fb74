/** The verdict on a report: is it genuine, and is it what was expected? Offline, and without any other input than what is given. */

import type { EvidenceInput } from "./chain.ts";
import { Checklist } from "./checklist.ts";
import type { Check, FailedCheck } from "./checklist.ts";
import { checkEvidence } from "./evidence.ts";

import { checkExpectations } from "./expectation-checks.ts";
import type { Expectations } from "./expectations.ts";
import type { LateBinding } from "./late-binding.ts";
import type { ProductLine } from "./product.ts";

/** What came out. */
export interface Verdict {
	/** True when every check that was asked for passed. */
	readonly verified: boolean;
	/** The first check that failed. */
	readonly failure: FailedCheck | undefined;
	/** All checks in their order. */
	readonly checks: readonly Check[];
	/** Undefined when the report is not genuine. */
	readonly product: ProductLine | undefined;
}

/**
 * Verifies a report.
 * @param further checks that follow those of the report and of the expectations
 * @param late for a guest whose policy was bound late; without it such a one is refused
 */
export function verifyFurther(
	input: EvidenceInput,
	expectations: Expectations,
	further: (list: Checklist) => void,
	late?: LateBinding,
): Verdict {
	const list = new Checklist();
	const evidence = checkEvidence(list, input);
	checkExpectations(list, evidence, expectations, late);
	further(list);
	return { verified: list.failure === undefined, failure: list.failure, checks: list.checks, product: evidence?.product };
}

/** Verifies a report. What was not expected explicitly is not checked, and listed as such; debugging and migration agents are refused unless allowed. */
export function verifyReport(input: EvidenceInput, expectations: Expectations, late?: LateBinding): Verdict {
	return verifyFurther(input, expectations, () => undefined, late);
}
