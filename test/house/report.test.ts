import t from "tap";
import { countCargo, countTap, sum, summaryLine } from "../../scripts/report.ts";

const TAP = `TAP version 14
# Subtest: test/a.test.ts
    # Subtest: one
        ok 1 - should be equal
        not ok 2 - nested assertions are not counted
        1..2
    not ok 1 - one # time=1ms

    ok 2 - two # time=1ms
    ok 3 - three # SKIP not here
    1..3
not ok 1 - test/a.test.ts # time=5ms
not ok 2 - test/crashed.test.ts # time=5ms
ok 3 - test/b.test.ts {
    ok 1 - four # time=2ms
    1..1
}
1..3
`;

t.test("countTap counts the named tests of every file, and files that failed as a whole", async (t) => {
	t.same(countTap(TAP), { passed: 2, failed: 2 });
	t.same(countTap(""), { passed: 0, failed: 0 });
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
