import t from "tap";
import { countCargo, countTap, readTap, sum, summaryLine } from "../../scripts/report.ts";

const TAP = `TAP version 14
# Subtest: test/a.test.ts
    # Subtest: one
        ok 1 - should be equal
        not ok 2 - an assertion is no test
          ---
          # Subtest: what a test prints is not read
          not ok 9 - nor this
          ...
        1..2
    not ok 1 - one # time=1ms

    # Subtest: two
        # Subtest: inner
            ok 1 - fine
            1..1
        ok 1 - inner # time=1ms
        # Subtest: other
            1..0
        ok 2 - other # SKIP not here
        1..2
    ok 2 - two # time=1ms
    1..2
not ok 1 - test/a.test.ts # time=5ms
not ok 2 - test/crashed.test.ts # time=5ms
# Subtest: test/early.test.ts
    # Subtest: three
        ok 1 - fine
        1..1
    ok 1 - three # time=1ms
    not ok 2 - timeout!
not ok 3 - test/early.test.ts # time=5ms
1..3
`;

t.test("readTap finds the innermost tests, and files that failed as a whole", async (t) => {
	const tests = readTap(TAP);
	t.same(
		tests.map(({ path, outcome }) => [path.join(" > "), outcome]),
		[
			["test/a.test.ts > one", "failed"],
			["test/a.test.ts > two > inner", "passed"],
			["test/a.test.ts > two > other", "skipped"],
			["test/crashed.test.ts", "failed"],
			["test/early.test.ts > three", "passed"],
			["test/early.test.ts", "failed"],
		],
	);
	t.match(tests[0]?.detail, /an assertion is no test/u);
	t.match(tests.at(-1)?.detail, /timeout!/u);
	t.same(countTap(tests), { passed: 2, failed: 3 });
	t.same(readTap(""), []);
});

t.test("countCargo adds up all programs", async (t) => {
	const output =
		"test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured\n...\ntest result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured\n";
	t.same(countCargo(output), { passed: 15, failed: 2 });
	t.same(countCargo("error: could not compile"), { passed: 0, failed: 0 });
});

t.test("the summary is one plain line", async (t) => {
	t.equal(
		summaryLine(
			sum([
				{ passed: 1, failed: 0 },
				{ passed: 2, failed: 3 },
			]),
		),
		"3 passed, 3 failed",
	);
});
