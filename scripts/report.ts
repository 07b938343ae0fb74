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

/** A test of a TAP report: one that has no tests inside it, or a file that failed as a whole. */
export interface TapTest {
	/** The file, then the names of the tests around it, then its own. */
	readonly path: readonly string[];
	readonly outcome: "passed" | "failed" | "skipped";
	/** Its lines of the report, with the diagnostics. */
	readonly detail: string;
}

interface OpenTest {
	readonly indent: number;
	readonly name: string;
	readonly line: number;
	inner: number;
	innerFailed: number;
}

/**
 * Reads the tests from tap's report (TAP version 14, subtests indented under `# Subtest:`). What surrounds others is not a test itself,
 * unless it failed and none of the others did: a file that could not be loaded, or ended early.
 */
export function readTap(tap: string): TapTest[] {
	const lines = tap.split("\n");
	const found: TapTest[] = [];
	const open: OpenTest[] = [];
	let diagnostics: string | undefined;
	for (const [number, line] of lines.entries()) {
		if (diagnostics !== undefined) {
			if (line === `${diagnostics}...`) diagnostics = undefined;
			continue;
		}
		diagnostics = /^( *)---$/u.exec(line)?.[1];
		const [, start, title] = /^( *)# Subtest: (.*)$/u.exec(line) ?? [];
		if (start !== undefined && title !== undefined)
			open.push({ indent: start.length, name: title, line: number, inner: 0, innerFailed: 0 });
		const [, indent, not, rest] = /^( *)(not )?ok \d+(.*)$/u.exec(line) ?? [];
		if (indent === undefined || rest === undefined) continue;
		const ends = open.at(-1)?.indent === indent.length ? open.pop() : undefined;
		// A point without a subtest is one assertion, or, outermost, a file that never said anything.
		if (ends === undefined && indent !== "") continue;
		const outcome = / # (?:skip|todo)/iu.test(rest) ? "skipped" : not === undefined ? "passed" : "failed";
		const around = open.at(-1);
		if (around !== undefined) around.inner += 1;
		if (around !== undefined && outcome === "failed") around.innerFailed += 1;
		if ((ends?.inner ?? 0) > 0 && !(outcome === "failed" && ends?.innerFailed === 0)) continue;
		const name = ends?.name ?? rest.replace(/^ - /u, "").replace(/ # time=.*$/u, "");
		found.push({
			path: [...open.map((each) => each.name), name],
			outcome,
			detail: lines.slice(ends?.line ?? number, number + 1).join("\n"),
		});
	}
	return found;
}

/** Counts tests; skipped ones count as nothing. */
export function countTap(tests: readonly TapTest[]): Counts {
	const count = (outcome: TapTest["outcome"]): number => tests.filter((test) => test.outcome === outcome).length;
	return { passed: count("passed"), failed: count("failed") };
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
