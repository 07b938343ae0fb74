/** What a run is shown as: text, one HTML file, the manual's page. */
import t from "tap";
import { compare } from "../../bench/baseline.ts";
import { renderDocument } from "../../bench/document.ts";
import { renderReport } from "../../bench/report.ts";
import { parseResults, updated } from "../../bench/results.ts";
import { renderTables } from "../../bench/table.ts";
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

t.test("the report is one file that needs no other, with its texts as texts", async (t) => {
	const html = renderReport(results, judge(results), compare(results, results));
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
	const html = renderReport(resultsWith([figure("a", { snp: [1, 2, 3], runc: [4, 5] })]), [], []);
	t.equal(html.match(/<circle /g)?.length, 5);
});

t.test("the text has every figure, the targets that were measured, and what failed", async (t) => {
	const text = renderTables(results, judge(results), compare(results, results));
	t.match(text, /figure shim\.start \(ms\) +1\.00 +2\.00 +3\.00 +3\.00 +5\.00 +6\.00 +7\.00 +7\.00 +0\.33/);
	t.match(text, /`start` +at most 2\.00 ms \(0\.30 of runc\) +1\.79 ms +2\.00 ms +6\.00 ms +missed/);
	t.match(text, /Create of a sandbox +at most 12\.0 ms \(0\.32 of runc\) +13\.0 ms +20\.0 ms +40\.0 ms +missed/);
	t.notMatch(text, /not measured\n/, "what was not measured is no line");
	t.match(text, /NOT MEASURED: stdio: a <broken> pipe/);
});

t.test("the manual's page names machine, command and each missed target with its reason", async (t) => {
	const page = renderDocument(results, judge(results, { "shim.sandbox": "the kernel takes its time" }));
	t.match(page, /npm run bench -- shim/);
	t.match(page, /2 x CPU "one", 8 GiB, Linux 6\.18, containerd 2\.1\.9/);
	t.match(page, /- \*\*Create of a sandbox\*\*: the kernel takes its time/);
	t.match(page, /\| figure shim\.start \(ms\) \| 2\.00 \(3\.00\) \| 6\.00 \(7\.00\) \| 0\.33 \|/);
	t.match(page, /not measured: stdio/);
});

t.test("scenarios that are measured again take the place of what was known of them, also when they fail", async (t) => {
	const of = (name: string, value: number) => resultsWith([figure(name, { snp: [value] })], { name }).scenarios;
	const before = {
		...resultsWith([]),
		command: "first",
		scenarios: [...of("a", 1), ...of("b", 1), ...of("c", 1)],
		failures: [{ scenario: "d", reason: "x" }],
	};
	const now = {
		...resultsWith([]),
		command: "second",
		containerd: "",
		scenarios: [...of("b", 2), ...of("d", 2)],
		failures: [{ scenario: "c", reason: "y" }],
	};
	const after = updated(before, now);
	t.same(
		after.scenarios.map(({ name, figures }) => [name, figures[0]?.samples["snp"]?.[0]]),
		[
			["a", 1],
			["b", 2],
			["d", 2],
		],
	);
	t.same(after.failures, [{ scenario: "c", reason: "y" }]);
	t.match(after, { command: "first; second", containerd: "2.1.9" });
	t.equal(updated(after, now).command, "first; second", "a command that is repeated is named once");
});

t.test("results are read as they were written, and others are refused by name", async (t) => {
	t.same(parseResults(JSON.stringify(results), "a.json"), results);
	t.throws(() => parseResults("{", "a.json"), /a\.json is no JSON/);
	t.throws(() => parseResults('{"version":1}', "a.json"), /a\.json has no results of this bench: version/);
	const empty = resultsWith([figure("a", { snp: [] })]);
	t.throws(() => parseResults(JSON.stringify(empty), "a.json"), /scenarios\.0\.figures\.0\.samples\.snp/);
});
