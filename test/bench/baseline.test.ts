/** What has changed since an earlier run. */
import t from "tap";
import { compare } from "../../bench/baseline.ts";
import { figure, resultsWith } from "./fixture.ts";

/** Twenty samples around a value, each a little off. */
const around = (value: number): number[] => Array.from({ length: 20 }, (_, at) => value * (0.97 + (0.06 * ((at * 7) % 20)) / 19));

function verdictOf(now: Record<string, number[]>, before: Record<string, number[]>, better: "less" | "more" = "less") {
	return compare(resultsWith([figure("a", now, { better })]), resultsWith([figure("a", before, { better })]))[0];
}

t.test("a slower machine makes nothing worse: runc has become slower as well", async (t) => {
	const change = verdictOf({ snp: around(20), runc: around(40) }, { snp: around(10), runc: around(20) });
	t.match(change, { verdict: "same", besideRunc: true });
});

t.test("a change beyond chance is told, in the direction that counts", async (t) => {
	t.equal(verdictOf({ snp: around(12), runc: around(20) }, { snp: around(10), runc: around(20) })?.verdict, "worse");
	t.equal(verdictOf({ snp: around(8), runc: around(20) }, { snp: around(10), runc: around(20) })?.verdict, "better");
	t.equal(verdictOf({ snp: around(120) }, { snp: around(100) }, "more")?.verdict, "better");
	t.equal(verdictOf({ snp: around(80) }, { snp: around(100) }, "more")?.verdict, "worse");
});

t.test("what chance explains is no change", async (t) => {
	const noisy = [5, 20, 10, 15, 8, 25, 12, 9];
	t.equal(verdictOf({ snp: noisy }, { snp: noisy.map((value) => value * 1.1) })?.verdict, "same");
	t.equal(verdictOf({ snp: around(10.2) }, { snp: around(10) })?.verdict, "same", "nobody would notice it");
});

t.test("of few samples only a large change is believed", async (t) => {
	t.equal(verdictOf({ snp: [1.1] }, { snp: [1] })?.verdict, "unsure");
	t.equal(verdictOf({ snp: [1.5] }, { snp: [1] })?.verdict, "worse");
	t.equal(verdictOf({ snp: [0.5] }, { snp: [1] })?.verdict, "better");
});

t.test("failures where there were none are worse", async (t) => {
	t.equal(verdictOf({ snp: [2], runc: [0] }, { snp: [0], runc: [0] })?.verdict, "worse");
	t.equal(verdictOf({ snp: [0], runc: [0] }, { snp: [0], runc: [0] })?.verdict, "unsure");
});

t.test("figures that only one run has are left out", async (t) => {
	const now = resultsWith([figure("a", { snp: [1] }), figure("new", { snp: [1] }), figure("other", { runc: [1] })]);
	const before = resultsWith([figure("a", { snp: [1] }), figure("old", { snp: [1] }), figure("other", { runc: [1] })]);
	t.same(
		compare(now, before).map((change) => change.figure.id),
		["a"],
	);
});
