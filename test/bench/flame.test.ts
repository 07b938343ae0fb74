/** Flame graphs of V8's profiles. */
import t from "tap";
import { parseProfile, renderFlameGraph } from "../../bench/flame.ts";

const frame = (functionName: string, url = "", lineNumber = 0) => ({ functionName, url, lineNumber });
const PROFILE = {
	nodes: [
		{ id: 1, callFrame: frame("(root)"), children: [2, 3, 5, 7] },
		{ id: 2, callFrame: frame("(idle)") },
		{ id: 3, callFrame: frame("handle", "file:///opt/bin/snpd", 9), children: [4] },
		{ id: 4, callFrame: frame("<write> & more") },
		{ id: 5, callFrame: frame("handle", "file:///opt/bin/snpd", 9), children: [6] },
		{ id: 6, callFrame: frame("") },
		{ id: 7, callFrame: frame("(program)") },
	],
	samples: [2, 3, 4, 4, 6, 7],
	timeDeltas: [0, 1000, 200, 300, 300, 50, 150],
};

t.test("times are added up over callers, equal ones become one, native code counts, idleness is left out", async (t) => {
	t.same(parseProfile(PROFILE), {
		name: "(root)",
		micros: 1000,
		children: [
			{
				name: "handle snpd:10",
				micros: 850,
				children: [
					{ name: "<write> & more", micros: 600, children: [] },
					{ name: "(nameless)", micros: 50, children: [] },
				],
			},
			{ name: "(program)", micros: 150, children: [] },
		],
	});
});

t.test("the picture has a box for each function and its text as text", async (t) => {
	const svg = renderFlameGraph(parseProfile(PROFILE), "snpd & others");
	t.match(svg, /snpd &amp; others: 1 ms at work/);
	t.equal(svg.match(/<title>/g)?.length, 5);
	t.match(svg, /<title>&lt;write&gt; &amp; more: 0\.6 ms, 60\.0 %<\/title>/);
});

t.test("a profile in which nothing happened is an empty picture", async (t) => {
	const idle = { nodes: PROFILE.nodes.slice(0, 2), samples: [2, 2], timeDeltas: [0, 100] };
	t.notMatch(renderFlameGraph(parseProfile(idle), "nothing"), /NaN/);
});

t.test("what is no profile is refused with what it lacks", async (t) => {
	t.throws(() => parseProfile({ nodes: [] }), /not a processor profile: samples/);
});
