/** What a run is shown as: text, one HTML file, the manual's page. */
import t from "tap";
import { compare } from "../../bench/baseline.ts";
import { renderDocument } from "../../bench/document.ts";
import { renderReport } from "../../bench/report.ts";
import { arranged, parseResults, Samples, groupsOf, updated, type Results } from "../../bench/results.ts";
import { renderTables, type Shown } from "../../bench/table.ts";
import { judge } from "../../bench/targets.ts";
import { figure, resultsWith } from "./fixture.ts";

const results = {
	...resultsWith([figure("shim.start", { snp: [1, 2, 3], runc: [5, 6, 7] }), figure("shim.sandbox", { snp: [20], runc: [40] })], {
		timeline: [
			{ step: "vmm-launch", startMs: 0, durationMs: 5 },
			{ step: "vm-create", startMs: 5, durationMs: 0 },
		],
		curves: [
			{
				name: "memory",
				unit: "MiB",
				over: "pods",
				points: { snp: [[1, 60] as [number, number], [50, 1.4] as [number, number]], runc: [[1, 12] as [number, number]] },
			},
		],
	}),
	failures: [{ scenario: "stdio", reason: "a <broken> pipe" }],
};

/** A run as it is shown, beside itself. */
function shown(run: Results, more: Partial<Shown> = {}): Shown {
	return { results: run, verdicts: judge(run), comparison: compare(run, run), absent: [], ...more };
}

t.test("the report is one file that needs no other, with its texts as texts", async (t) => {
	const html = renderReport(shown(results));
	t.notMatch(html, /<script|<link|<img|url\(|src=|href="http/, "nothing is loaded");
	t.match(html, /prefers-color-scheme: dark/);
	t.match(html, /a &lt;pod&gt; &amp; more/);
	t.match(html, /not measured: stdio: a &lt;broken&gt; pipe/);
	t.notMatch(html, /NaN|undefined|Infinity/);
	t.equal(html.match(/<svg /g)?.length, html.match(/<\/svg>/g)?.length);
	t.equal(html.match(/<svg /g)?.length, 4, "two distributions, the steps, a curve");
	t.match(html, /vmm-launch/);
	t.match(html, /class="missed"/);
});

t.test("every sample is a dot", async (t) => {
	const html = renderReport(shown(resultsWith([figure("a", { snp: [1, 2, 3], runc: [4, 5] })]), { verdicts: [] }));
	t.equal(html.match(/<circle /g)?.length, 5);
});

t.test("the text has every figure, every target, the steps by name, and what was not measured", async (t) => {
	const text = renderTables(shown(results, { absent: ["network", "cold"] }));
	t.match(text, /figure shim\.start \(ms\) +1\.00 +2\.00 +3\.00 +3\.00 +5\.00 +6\.00 +7\.00 +7\.00 +0\.33/);
	t.match(text, /`start` +at most 2\.00 ms \(0\.30 of runc\) +1\.79 ms +2\.00 ms +6\.00 ms +missed \(met in ms, missed beside runc\)/);
	t.match(text, /Create of a sandbox, loopback alone +at most 12\.0 ms \(0\.32 of runc\) +13\.0 ms +20\.0 ms +40\.0 ms +missed\n/);
	t.match(text, /Create of a sandbox, with an interface .* not measured\n/, "a target that was not measured is told");
	t.match(text, /vmm-launch +0 +5\.00\n/);
	t.match(text, /NOT MEASURED: stdio: a <broken> pipe/);
	t.match(text, /not measured: network, cold/);
});

t.test("the manual's page names machine, command and each missed target with its reason", async (t) => {
	const page = renderDocument(
		shown(results, { verdicts: judge(results, { "shim.sandbox": "the kernel takes its time" }), absent: ["network"] }),
	);
	t.match(page, /Measured on 2 x CPU "one", 8 GiB, Linux 6\.18, containerd 2\.1\.9\./);
	t.match(page, /null VM\. Measured by `npm run bench -- shim`: 2026-01-02, commit 0123456789, load 1\.5 when it began\./);
	t.match(page, /- \*\*Create of a sandbox, loopback alone\*\*: the kernel takes its time/);
	t.match(page, /\| figure shim\.start \(ms\) \| 2\.00 \(3\.00\) \| 6\.00 \(7\.00\) \| 0\.33 \|/);
	t.match(page, /\| vmm-launch \| 0 \| 5\.00 \|/);
	t.match(page, /not measured: stdio/);
	t.match(page, /Not measured: network\./);
});

t.test("tables of several machines say which is whose", async (t) => {
	const other = resultsWith([figure("b", { snp: [1] })], { name: "cold", host: { kernel: "5.10", cpu: "two", cpus: 4, memoryGib: 16 } });
	const page = renderDocument(shown({ ...results, scenarios: [...results.scenarios, ...other.scenarios] }));
	t.match(page, /Measured on several machines/);
	t.match(page, /load 1\.5 when it began, 4 x two, 16 GiB, Linux 5\.10/);
});

t.test("scenarios that are measured again take the place of what was known of them, also when they fail", async (t) => {
	const again = (scenarios: Results["scenarios"]) => scenarios.map((one) => ({ ...one, command: "second" }));
	const of = (name: string, value: number) => resultsWith([figure(name, { snp: [value] })], { name }).scenarios;
	const before = {
		...resultsWith([]),
		scenarios: [...of("a", 1), ...of("b", 1), ...of("c", 1)],
		failures: [{ scenario: "d", reason: "x" }],
	};
	const now = {
		...resultsWith([]),
		runtimes: ["snp", "runc", "kata"],
		scenarios: again([...of("b", 2), ...of("d", 2)]),
		failures: [{ scenario: "c", reason: "y" }],
	};
	const after = updated(before, now);
	t.same(
		after.scenarios.map(({ name, figures, command }) => [name, figures[0]?.samples["snp"]?.[0], command]),
		[
			["a", 1, "npm run bench -- shim"],
			["b", 2, "second"],
			["d", 2, "second"],
		],
	);
	t.same(after.failures, [{ scenario: "c", reason: "y" }]);
	t.same(after.runtimes, ["snp", "runc", "kata"]);
	const { results: inOrder, absent } = arranged(after, ["d", "c", "b", "a", "e"]);
	t.same(
		inOrder.scenarios.map(({ name }) => name),
		["d", "b", "a"],
	);
	t.same(absent, ["e"], "what failed is not absent");
});

t.test("samples that were taken together stay together", async (t) => {
	const samples = new Samples();
	samples.addTogether("a", "snp", [1, 2]);
	samples.addTogether("a", "snp", []);
	samples.addTogether("a", "snp", [3]);
	samples.add("b", "snp", 4);
	samples.add("b", "snp", 5);
	t.same(groupsOf(samples.figure("a", "a"), "snp"), [[1, 2], [3]]);
	t.same(groupsOf(samples.figure("b", "b"), "snp"), [[4], [5]]);
	t.throws(() => samples.figure("c", "c"), /nothing was measured for c/);
});

t.test("results are read as they were written, and others are refused by name", async (t) => {
	t.same(parseResults(JSON.stringify(results), "a.json"), results);
	t.throws(() => parseResults("{", "a.json"), /a\.json is no JSON/);
	t.throws(() => parseResults('{"version":1}', "a.json"), /a\.json has no results of this bench: version/);
	const empty = resultsWith([figure("a", { snp: [] })]);
	t.throws(() => parseResults(JSON.stringify(empty), "a.json"), /scenarios\.0\.figures\.0\.samples\.snp/);
});
