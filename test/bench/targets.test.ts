/** How a run stands against the targets. */
import t from "tap";
import reasons from "../../bench/missed.json" with { type: "json" };
import { judge, TARGETS } from "../../bench/targets.ts";
import { figure, resultsWith } from "./fixture.ts";

const of = (id: string, verdicts: ReturnType<typeof judge>) => verdicts.find(({ target }) => target.id === id);

t.test("a target is met at its limit and missed beyond it, with the reason that is known", async (t) => {
	const verdicts = judge(
		resultsWith([
			figure("shim.start", { snp: [1.9], runc: [6.7] }),
			figure("shim.sandbox", { snp: [12.1], runc: [37] }),
			figure("shim.container", { snp: [5] }),
			figure("stdio.lines", { snp: [80], "raw vsock": [100] }),
			figure("stdio.large", { snp: [79], "raw vsock": [100] }),
			figure("parallel.50.each", { snp: [10, 10, 10, 31] }),
			figure("parallel.50.failed", { snp: [0, 1] }),
		]),
		{ "shim.sandbox": "the kernel" },
	);
	t.match(of("shim.start", verdicts), { outcome: "met", value: 1.9, runc: 6.7, reason: "" });
	t.match(of("shim.sandbox", verdicts), { outcome: "missed", reason: "the kernel" });
	t.match(of("shim.container", verdicts), { outcome: "missed", reason: "no reason is known yet" });
	t.match(of("stdio.lines", verdicts), { outcome: "met", value: 0.8 });
	t.match(of("stdio.large", verdicts), { outcome: "missed" });
	t.match(of("parallel.50.spread", verdicts), { outcome: "missed", value: 3.1 });
	t.match(of("parallel.50.failed", verdicts), { outcome: "missed", value: 1 });
	t.match(of("memory.50.pss", verdicts), { outcome: "not measured", reason: "" });
});

t.test("on a machine where runc is slower, so may we be", async (t) => {
	const verdict = (snp: number, runc: number) => of("shim.start", judge(resultsWith([figure("shim.start", { snp: [snp], runc: [runc] })])));
	t.match(verdict(3.9, 13.4), { outcome: "met" });
	t.match(verdict(4.1, 13.4), { outcome: "missed" });
	t.match(verdict(1.9, 3.35), { outcome: "missed", besides: "met in ms, missed beside runc" }, "and on a quick one we may not");
	t.match(verdict(3.9, 13.4), { besides: "missed in ms, met beside runc" });
	t.match(verdict(1.9, 6.7), { besides: "" });
});

t.test("every reason belongs to a target", async (t) => {
	const ids = new Set(TARGETS.map(({ id }) => id));
	t.equal(ids.size, TARGETS.length, "each has an id of its own");
	t.same(
		Object.keys(reasons).filter((id) => !ids.has(id)),
		[],
	);
});
