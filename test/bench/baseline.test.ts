/** What has changed since an earlier run. */
import t from "tap";
import { compare } from "../../bench/baseline.ts";
import { figure, resultsWith } from "./fixture.ts";

/** Twenty samples around a value, each a little off. */
const around = (value: number): number[] => Array.from({ length: 20 }, (_, at) => value * (0.97 + (0.06 * ((at * 7) % 20)) / 19));

function verdictOf(now: Record<string, number[]>, before: Record<string, number[]>, better: "less" | "more" = "less") {
	return compare(resultsWith([figure("a", now, { better })]), resultsWith([figure("a", before, { better })])).changes[0];
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

t.test("of few samples only a large change is believed, and none where values overlap", async (t) => {
	t.equal(verdictOf({ snp: [1.4, 1.4] }, { snp: [1, 1] })?.verdict, "unsure");
	t.equal(verdictOf({ snp: [1.5, 1.6] }, { snp: [1, 1] })?.verdict, "worse");
	t.equal(verdictOf({ snp: [0.5, 0.6] }, { snp: [1, 1.1] })?.verdict, "better");
	t.equal(verdictOf({ snp: [1, 3, 3] }, { snp: [1, 1, 1.2] })?.verdict, "unsure", "they overlap");
	t.equal(
		verdictOf({ snp: [3, 3], runc: [10, 40] }, { snp: [1, 1], runc: [10, 10] })?.verdict,
		"unsure",
		"beside a runc that changed as much",
	);
	t.equal(verdictOf({ snp: [9] }, { snp: [1] })?.verdict, "unsure", "one sample says nothing");
});

t.test("the samples of one burst are one", async (t) => {
	const burst = (values: number[], size: number) => {
		const sizes = Array.from({ length: values.length / size }, () => size);
		return resultsWith([figure("a", { snp: values }, { together: { snp: sizes } })]);
	};
	const [slow, quick] = [around(12), around(10)];
	t.equal(compare(burst(slow, 1), burst(quick, 1)).changes[0]?.verdict, "worse");
	t.equal(compare(burst(slow, 10), burst(quick, 10)).changes[0]?.verdict, "unsure");
});

t.test("failures where there were none are worse", async (t) => {
	t.equal(verdictOf({ snp: [2], runc: [0] }, { snp: [0], runc: [0] })?.verdict, "worse");
	t.equal(verdictOf({ snp: [0], runc: [0] }, { snp: [0], runc: [0] })?.verdict, "unsure");
});

t.test("figures that only one run has are not compared, and those that are gone are named", async (t) => {
	const now = resultsWith([figure("a", { snp: [1] }), figure("new", { snp: [1] }), figure("other", { runc: [1] })]);
	const before = resultsWith([figure("a", { snp: [1] }), figure("old", { snp: [1] }), figure("other", { runc: [1] })]);
	const { changes, remarks } = compare(now, before);
	t.same(
		changes.map((change) => change.figure.id),
		["a"],
	);
	t.same(remarks, ["shim: the baseline has figures that were not measured now: old"]);
	t.same(compare({ ...now, scenarios: [] }, before).remarks, ["shim: in the baseline, and not measured now"]);
});

t.test("another machine, containerd or VM is told", async (t) => {
	const before = resultsWith([figure("a", { snp: [1] })]);
	const remark = (more: Partial<(typeof before.scenarios)[number]>) =>
		compare(resultsWith([figure("a", { snp: [1] })], more), before).remarks;
	t.match(remark({ containerd: "1.7.1" }), [
		/^shim: other surroundings: .*containerd 1\.7\.1, VM null; the baseline: .*containerd 2\.1\.9/,
	]);
	t.match(remark({ vm: "ch-qemu" }), [/VM ch-qemu/]);
	t.match(remark({ host: { kernel: "5.10", cpu: "x", cpus: 4, memoryGib: 8 } }), [/4 x x/]);
	t.same(remark({ commit: "another", load1: 9 }), []);
});

t.test("how many verdicts are expected to be false is told", async (t) => {
	const figures = Array.from({ length: 30 }, (_, at) => figure(`f${at}`, { snp: around(10) }));
	t.match(compare(resultsWith(figures), resultsWith(figures)).remarks, [/^of 30 figures with enough samples, up to 1\.5 are expected/]);
});
