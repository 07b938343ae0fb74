/** What snpctl top shows. */

import t from "tap";

import { renderMemory } from "../../shim/command/top.ts";

const MIB = 1024 * 1024;
const vm = {
	namespace: "k8s.io",
	podId: "web",
	sizeBytes: 856 * MIB,
	residentBytes: 203 * MIB,
	shareBytes: 201 * MIB,
	peakBytes: 612 * MIB,
	balloonBytes: 0,
	exempt: null,
};
const node = {
	totalBytes: 24_105 * MIB,
	availableBytes: 9731 * MIB,
	reserveBytes: 512 * MIB,
	budgetBytes: 0,
	stalledPercent: 1.5,
	short: false,
	waitingBytes: 0,
};

t.test("a line for the node, and one for each pod with what the node has of it again", async (t) => {
	t.equal(
		renderMemory({ ...node, vms: [vm] }),
		[
			"node: 9731 of 24105 MiB available, 512 to be kept; pods hold 203 MiB, VMs that wait for one 0 MiB; stalled 1.5 % of the time; at ease",
			"NAMESPACE  POD  SIZE  RESIDENT  PSS  PEAK  GIVEN BACK  BALLOON  GIVES MORE",
			"k8s.io     web  856   203       201  612   409         0        when memory is short",
		].join("\n"),
	);
});

t.test("a budget, a shortage, what is not known, and why some pods give nothing", async (t) => {
	const unknown = { ...vm, residentBytes: null, shareBytes: null, peakBytes: null, exempt: "confidential" };
	const text = renderMemory({
		...node,
		budgetBytes: 4096 * MIB,
		stalledPercent: null,
		short: true,
		waitingBytes: 97 * MIB,
		vms: [unknown, { ...vm, exempt: "no balloon" }, { ...vm, balloonBytes: null }],
	});
	t.match(text, "pods hold 406 MiB, VMs that wait for one 97 MiB, 503 of 4096 MiB in all; stalls not known; SHORT OF MEMORY");
	t.match(text, /web +856 +- +- +- +- +0 +never: its memory is encrypted/u);
	t.match(text, /not asked to: it has no balloon/u);
	t.match(text, /409 +- +when memory is short/u, "what a balloon holds may be unknown");
});
