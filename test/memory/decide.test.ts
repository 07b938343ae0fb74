/** Who gives memory back, and who gets it. */

import t from "tap";

import { assess, AT_EASE, CALM_MS, decide, reserveOf, slackOf } from "../../shim/memory/decide.ts";
import type { Assessment, Place, PlaceState, VmView } from "../../shim/memory/decide.ts";

const MIB = 1024 * 1024;
const RESERVE = 512 * MIB;
const NOW = 1_000_000;

const node = (availableMib: number, stalledPercent?: number): Place => ({
	totalBytes: 16_384 * MIB,
	availableBytes: availableMib * MIB,
	stalledPercent,
});
const short: PlaceState = { short: true, calmSinceMs: undefined };

t.test("a place is short when less than its reserve is available, or tasks wait for scarce memory", async (t) => {
	const table: readonly (readonly [string, Place, PlaceState, boolean, number])[] = [
		["plenty", node(4096), AT_EASE, false, 0],
		["as much as the reserve", node(512), AT_EASE, false, 0],
		["less", node(511), AT_EASE, true, 257],
		["nothing", node(0), AT_EASE, true, 768],
		["more than all: a budget that is overdrawn", node(-100), AT_EASE, true, 868],
		["waiting with plenty: somebody is at a limit of its own", node(4096, 60), AT_EASE, false, 0],
		["waiting while memory is scarce", node(1024, 60), AT_EASE, true, 128],
		["a little waiting", node(1024, 5), AT_EASE, false, 0],
		["short stays short until enough is available", node(700), short, true, 68],
		["enough, for a moment only", node(1024), short, true, 0],
		["enough, but tasks still wait", node(1024, 5), { short: true, calmSinceMs: NOW - CALM_MS }, true, 0],
		["enough for a while", node(1024), { short: true, calmSinceMs: NOW - CALM_MS }, false, 0],
	];
	for (const [name, place, before, isShort, wantedMib] of table)
		t.match(assess(place, before, RESERVE, NOW), { short: isShort, wantedBytes: wantedMib * MIB }, name);
});

t.test("calm must last: a look at a short place begins the time again", async (t) => {
	let state: PlaceState = short;
	const look = (availableMib: number, atMs: number): boolean => (state = assess(node(availableMib), state, RESERVE, atMs)).short;
	t.ok(look(1024, 0));
	t.ok(look(1024, CALM_MS - 1));
	t.ok(look(600, CALM_MS), "not enough again");
	t.ok(look(1024, CALM_MS + 1));
	t.ok(look(1024, 2 * CALM_MS));
	t.notOk(look(1024, 2 * CALM_MS + 1));
	t.notOk(look(600, 2 * CALM_MS + 2), "less than enough is no shortage");
});

t.test("a small place keeps a part of it, not the node's reserve", async (t) => {
	t.equal(reserveOf({ totalBytes: 800 * MIB, availableBytes: 0, stalledPercent: undefined }, RESERVE), 100 * MIB);
	t.equal(reserveOf(node(0), RESERVE), RESERVE);
});

const vm = (over: Partial<VmView> & { readonly freeMib?: number; readonly availableMib?: number } = {}): VmView => ({
	sizeBytes: 512 * MIB,
	askedBytes: 0,
	actualBytes: 0,
	floorBytes: 128 * MIB,
	guest: { freeBytes: (over.freeMib ?? 100) * MIB, availableBytes: (over.availableMib ?? 300) * MIB },
	idle: true,
	held: false,
	exempt: undefined,
	places: [0],
	...over,
});
const wants = (mib: number, severe = false): Assessment => ({
	short: true,
	calmSinceMs: undefined,
	wantedBytes: mib * MIB,
	severe,
	spareBytes: 0,
});
const spare = (mib: number): Assessment => ({ short: false, calmSinceMs: undefined, wantedBytes: 0, severe: false, spareBytes: mib * MIB });
const inMib = (targets: Map<number, number>): Record<number, number> =>
	Object.fromEntries([...targets].map(([index, bytes]) => [index, bytes / MIB]));

t.test("who gives how much", async (t) => {
	const table: readonly (readonly [string, readonly VmView[], Assessment, Record<number, number>])[] = [
		["nobody is asked while all is well", [vm()], spare(0), {}],
		["free pages first, which the node has already, then what is wanted", [vm()], wants(50), { 0: 150 }],
		["no more than the guest can spare", [vm()], wants(1000), { 0: 236 }],
		["not below the floor", [vm({ floorBytes: 400 * MIB })], wants(1000), { 0: 112 }],
		["a VM at its floor gives nothing", [vm({ floorBytes: 512 * MIB })], wants(1000), {}],
		["a guest that uses what it has gives nothing", [vm({ availableMib: 60 })], wants(1000), {}],
		["one that has most to give goes first", [vm({ availableMib: 200 }), vm()], wants(100), { 1: 200 }],
		["the next one gives the rest", [vm({ availableMib: 200 }), vm()], wants(150), { 1: 236, 0: 114 }],
		["a busy one is left alone", [vm({ idle: false }), vm({ availableMib: 200 })], wants(1000), { 1: 136 }],
		["nearly nothing is left: busy ones give too, after the others", [vm({ idle: false }), vm()], wants(200, true), { 1: 236, 0: 164 }],
		["one that needed memory lately is left alone", [vm({ held: true })], wants(1000), {}],
		["one that was not asked is left alone", [vm({ guest: undefined })], wants(1000), {}],
		["a balloon on its way is let arrive", [vm({ askedBytes: 100 * MIB, actualBytes: 40 * MIB })], wants(1000), {}],
		["confidential memory stays", [vm({ exempt: "confidential" })], wants(1000, true), {}],
		["without a balloon nothing can be taken", [vm({ exempt: "no balloon" })], wants(1000), {}],
		["a VM in another place is not asked", [vm({ places: [] })], wants(1000), {}],
	];
	for (const [name, vms, place, targets] of table) t.strictSame(inMib(decide(vms, [place])), targets, name);
});

t.test("what one place takes counts in every other that the VM is in", async (t) => {
	/** 1 GiB of caches to give, and no free page. */
	const rich = (over: Partial<VmView> & { readonly availableMib?: number } = {}): VmView =>
		vm({ sizeBytes: 2048 * MIB, availableMib: 1280, freeMib: 0, places: [0, 1, 2, 3], ...over });
	const four = [rich(), rich(), rich(), rich()];
	const all = [wants(500), wants(500), wants(500), wants(500)];
	const rows: readonly (readonly [string, readonly VmView[], readonly Assessment[], Record<number, number>])[] = [
		["one short place", four, [wants(500)], { 0: 500 }],
		["two that hold the same VMs", four, all.slice(0, 2), { 0: 500 }],
		["four", four, all, { 0: 500 }],
		["one wants more than the others", four, [wants(500), wants(700), wants(100), wants(500)], { 0: 700 }],
		[
			"more than one VM has: the rest comes from the next, once",
			[rich({ availableMib: 456 }), rich({ availableMib: 356 })],
			[wants(250), wants(260)],
			{ 0: 200, 1: 60 },
		],
		[
			"a pod's own group takes from the pod, which serves the places around it",
			[rich({ places: [0] }), rich({ places: [0, 1] })],
			[wants(300), wants(300)],
			{ 1: 300 },
		],
		[
			"and they take only the rest from others",
			[rich({ places: [0] }), rich({ places: [0, 1] })],
			[wants(700), wants(300)],
			{ 0: 400, 1: 300 },
		],
		[
			"two groups of their own, and the node",
			[rich({ places: [0, 1] }), rich({ places: [0, 2] })],
			[wants(450), wants(200), wants(200)],
			{ 0: 250, 1: 200 },
		],
		["a VM's free pages count once", [vm({ freeMib: 100, places: [0, 1] })], [wants(50), wants(80)], { 0: 180 }],
		[
			"busy ones give to the place that is nearly empty, and no more for another",
			[rich({ idle: false })],
			[wants(500), wants(200, true)],
			{ 0: 200 },
		],
		["what a balloon on its way brings is not asked of another", [rich({ askedBytes: 400 * MIB }), rich()], [wants(500)], { 1: 100 }],
	];
	for (const [name, vms, places, targets] of rows) t.strictSame(inMib(decide(vms, places)), targets, name);
});

t.test("need comes before any shortage", async (t) => {
	const ballooned = (availableMib: number, askedMib = 300): VmView =>
		vm({ askedBytes: askedMib * MIB, actualBytes: askedMib * MIB, availableMib, freeMib: 10 });
	t.equal(slackOf(ballooned(0)), 32 * MIB);
	t.strictSame(inMib(decide([ballooned(15)], [wants(1000, true)])), { 0: 236 }, "a guest that has too little left gets some back");
	t.strictSame(inMib(decide([ballooned(0, 40)], [wants(1000, true)])), { 0: 0 }, "at most all");
	t.strictSame(inMib(decide([ballooned(20)], [wants(1000, true)])), {}, "one that has little gives nothing and gets nothing");
	const arriving = { ...ballooned(10), actualBytes: 200 * MIB };
	t.strictSame(inMib(decide([arriving], [wants(1000)])), { 0: 132 }, "a balloon that grows too far stops before it gets there");
});

t.test("when no place of it is short, a VM gets back what these can spare", async (t) => {
	const holder = (askedMib: number, places: readonly number[] = [0]): VmView =>
		vm({ askedBytes: askedMib * MIB, actualBytes: askedMib * MIB, availableMib: 100, places });
	t.strictSame(inMib(decide([holder(100)], [spare(1000)])), { 0: 0 });
	t.strictSame(inMib(decide([holder(100)], [spare(100)])), { 0: 50 }, "half of what can be spared");
	t.strictSame(inMib(decide([holder(100), holder(200)], [spare(500)])), { 1: 0, 0: 50 }, "the largest balloon first");
	t.strictSame(inMib(decide([holder(4)], [spare(100)])), { 0: 0 }, "a small rest too");
	t.strictSame(inMib(decide([holder(100)], [spare(4)])), {}, "not by tiny steps");
	t.strictSame(inMib(decide([holder(100, [0, 1])], [spare(1000), wants(0)])), {}, "its control group is still short");
	t.strictSame(inMib(decide([holder(100, [0, 1])], [spare(1000), spare(60)])), { 0: 70 }, "the scarcest place counts");
});
