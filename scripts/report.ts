/** Counts what test runs report: tap's TAP output and cargo's summary lines. Pure. */

/** How many tests ended how. */
export interface Counts {
	readonly passed: number;
	readonly failed: number;
}

/** Adds up. */
export function sum(counts: readonly Counts[]): Counts {
	return counts.reduce((total, each) => ({ passed: total.passed + each.passed, failed: total.failed + each.failed }), {
		passed: 0,
		failed: 0,
	});
}

/**
 * Counts the tests in tap's raw TAP output: the named tests in each file (indented once). A file that failed without one failed test in
 * it (it could not be loaded, or ended early) counts as a failed test. Skipped and planned ones count as nothing.
 */
export function countTap(tap: string): Counts {
	let passed = 0;
	let failed = 0;
	let failedInFile = 0;
	for (const line of tap.split("\n")) {
		const [, indent, not, rest] = /^((?: {4})?)(not )?ok \d+(.*)$/.exec(line) ?? [];
		if (rest === undefined) continue;
		if (indent === "") {
			if (not !== undefined && failedInFile === 0) failed += 1;
			failedInFile = 0;
		} else if (/ # (?:skip|todo)/i.test(rest)) {
			continue;
		} else if (not === undefined) {
			passed += 1;
		} else {
			failed += 1;
			failedInFile += 1;
		}
	}
	return { passed, failed };
}

/** Counts the tests in the output of `cargo test`, all programs together. */
export function countCargo(output: string): Counts {
	const results = output.matchAll(/^test result: \w+\. (\d+) passed; (\d+) failed;/gm);
	return sum([...results].map(([, passed, failed]) => ({ passed: Number(passed), failed: Number(failed) })));
}

/** The line that ends a run. */
export function summaryLine({ passed, failed }: Counts): string {
	return `${passed} passed, ${failed} failed`;
}
