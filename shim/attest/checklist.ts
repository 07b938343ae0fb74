/** Checks that are run in order, each with a name that stays the same between versions. The first that fails ends the running; the others are still listed. */

import { messageOf, ShimError } from "../base/errors.ts";

/** How one check ended. */
export type Outcome =
	| { readonly status: "passed"; readonly detail?: string }
	/** Nothing to compare with was given. */
	| { readonly status: "not-asked"; readonly detail: string }
	| { readonly status: "failed"; readonly expected: string; readonly got: string; readonly remedy: string };

/** What a failed check means: the evidence is not genuine, or it is and tells of something that was not expected. */
export type CheckKind = "evidence" | "expectation";

/** A check and its end. */
export type Check = { readonly name: string; readonly title: string; readonly kind: CheckKind } & (
	| Outcome
	| { readonly status: "not-reached" }
);

/** A check that failed. */
export type FailedCheck = Extract<Check, { readonly status: "failed" }>;

/** Passed, with what was found. */
export const passed = (detail?: string): Outcome => (detail === undefined ? { status: "passed" } : { status: "passed", detail });

/** Failed: what was expected, what was found, what can be done. */
export const failed = (expected: string, got: string, remedy: string): Outcome => ({ status: "failed", expected, got, remedy });

/** Not asked, with the way to ask. */
export const notAsked = (detail: string): Outcome => ({ status: "not-asked", detail });

/** Collects checks. */
export class Checklist {
	readonly #checks: Check[] = [];
	#failure: FailedCheck | undefined;

	/** All checks so far, in order. */
	get checks(): readonly Check[] {
		return this.#checks;
	}

	/** The first check that failed. */
	get failure(): FailedCheck | undefined {
		return this.#failure;
	}

	/** Runs a check unless one has failed before. A ShimError that it throws (a malformed certificate) is its failure. */
	check(kind: CheckKind, name: string, title: string, run: () => Outcome): void {
		if (this.#failure !== undefined) {
			this.#checks.push({ kind, name, title, status: "not-reached" });
			return;
		}
		const outcome = attempt(run);
		if (outcome.status === "failed") this.#failure = { kind, name, title, ...outcome };
		this.#checks.push({ kind, name, title, ...outcome });
	}
}

function attempt(run: () => Outcome): Outcome {
	try {
		return run();
	} catch (error) {
		if (!(error instanceof ShimError) || error.reason === "internal") throw error;
		return failed("well-formed input", messageOf(error), error.remedy);
	}
}
