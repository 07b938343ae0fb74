/** When the controller looks, and what comes of it. The node is made up, and time stands still unless it is let pass. */
import t from "tap";
import { FalseNode, FalsePod, FalseSpare, MIB } from "../support/false-node.ts";

/** The pauses between looks, in milliseconds. */
const pauses = ({ looksAtMs }: FalseNode): number[] => looksAtMs.slice(1).map((atMs, index) => atMs - (looksAtMs[index] ?? 0));

t.test(
	"without anything to look after it sleeps; it looks slowly, quickly while memory is short, and at once when the kernel tells",
	async (t) => {
		const node = new FalseNode();
		await node.clock.pass(60_000);
		t.strictSame([node.looksAtMs.length, node.clock.nextMs, node.pressure], [0, undefined, undefined]);
		const pod = new FalsePod(node, 10);
		await node.clock.pass(10_000);
		t.strictSame(pauses(node), [5_000]);
		t.equal(pod.askedAtMs.length, 0, "while all is well nobody is asked");
		node.availableMib = 100;
		node.pressure?.();
		node.pressure?.();
		node.pressure?.();
		await node.clock.pass(0);
		t.strictSame(
			pauses(node),
			[5_000],
			"at the very moment of a look: the one that is due begins at once, and others wait for the next period",
		);
		await node.clock.pass(2_000);
		t.strictSame(pauses(node).slice(1), [1_000, 1_000]);
		pod.leave();
		await node.clock.pass(60_000);
		t.equal(node.clock.nextMs, undefined);
		t.equal(node.pressure, undefined);
		t.equal(node.watches.size, 0);
	},
);

t.test("a shortage begins at once, lasts until there was enough for ten seconds, and then memory goes back by halves", async (t) => {
	const node = new FalseNode();
	const pod = new FalsePod(node, 10);
	await node.clock.pass(5_000);
	node.availableMib = 500;
	await node.clock.pass(5_000);
	t.equal(pod.balloonMib, 268, "what the node lacks");
	t.equal((await node.controller.summary()).short, true);
	node.availableMib = 800;
	await node.clock.pass(9_000);
	node.availableMib = 700;
	await node.clock.pass(1_000);
	node.availableMib = 900;
	await node.clock.pass(10_000);
	const held = pod.balloonMib;
	t.equal(held, 268 + 68, "one look at too little takes more, and begins the time again");
	await node.clock.pass(1_000);
	t.equal(pod.balloonMib, held - 66, "half of what can be spared");
	t.equal((await node.controller.summary()).short, false);
	await node.clock.pass(5_000);
	t.equal(pod.balloonMib, 0);
	const looks = node.looksAtMs.length;
	await node.clock.pass(6_000);
	t.ok(node.looksAtMs.length <= looks + 2, "and it looks slowly again");
});

t.test("a pod that works for nothing but the controller's questions is idle, one that works otherwise is not", async (t) => {
	const node = new FalseNode();
	const [quiet, busy] = [new FalsePod(node, 10), new FalsePod(node, 11)];
	await node.clock.pass(5_000);
	for (const pod of [quiet, busy]) pod.answerCpuMs = 400;
	node.availableMib = 500;
	node.cpuMs.set(11, 1_000);
	await node.clock.pass(5_000);
	t.strictSame([quiet.balloonMib, busy.balloonMib], [268, 0]);
	node.availableMib = 700;
	for (const balloonMib of [336, 404]) {
		node.cpuMs.set(11, (node.cpuMs.get(11) ?? 0) + 200);
		await node.clock.pass(1_000);
		t.strictSame([quiet.balloonMib, busy.balloonMib], [balloonMib, 0]);
	}
});

t.test("VMs that wait for pods go first, by halves; pods give when none waits any more, and only what those don't bring", async (t) => {
	const node = new FalseNode();
	const spare = new FalseSpare(node, 4);
	const pod = new FalsePod(node, 10);
	node.controller.use(spare);
	await node.clock.pass(0);
	t.equal(spare.allowedMib, 8_192 - 768, "it is told at once how much there is for more");
	// 868 MiB are lacking.
	node.availableMib = -100;
	await node.clock.pass(5_000);
	t.strictSame(spare.shrunk, [2]);
	t.equal(spare.allowedMib, 0);
	await node.clock.pass(1_000);
	await node.clock.pass(1_000);
	t.strictSame(spare.shrunk, [2, 1, 1], "nobody waits for their ends");
	t.equal(pod.askedAtMs.length, 0);
	t.equal(pod.changes.length, 0);
	await node.clock.pass(1_000);
	t.equal(pod.balloonMib, 468, "what they hold counts as there");
	t.equal(spare.ending.length, 4);
	spare.end();
	await node.clock.pass(1_000);
	t.equal(node.watches.size, 1, "who is gone is not watched any more");
});

t.test("what VMs that are being ended hold is not counted on for ever", async (t) => {
	const node = new FalseNode();
	const spare = new FalseSpare(node, 1);
	spare.kept = true;
	const pod = new FalsePod(node, 10);
	node.controller.use(spare);
	node.availableMib = 700;
	await node.clock.pass(0);
	t.equal(spare.shrunk.length, 0);
	// 68 MiB are lacking, and 100 will come.
	node.availableMib = 511;
	await node.clock.pass(5_000);
	t.strictSame(spare.shrunk, [1]);
	node.availableMib = 700;
	await node.clock.pass(9_000);
	t.strictSame(spare.shrunk, [1], "enough is on its way");
	t.equal(pod.balloonMib, 0);
	await node.clock.pass(2_000);
	t.equal(pod.balloonMib, 68);
});

t.test("a VM that begins to end while memory is looked at counts as one that is ending", async (t) => {
	const node = new FalseNode();
	const spare = new FalseSpare(node, 1);
	const pod = new FalsePod(node, 10);
	node.controller.use(spare);
	await node.clock.pass(5_000);
	// The pool ends it for reasons of its own.
	node.sampled = () => void spare.ending.push(...spare.waiting.splice(0));
	node.availableMib = 500;
	await node.clock.pass(5_000);
	t.equal(spare.ending.length, 1);
	t.equal(pod.balloonMib, 168, "of 268 MiB 100 will come");
});

t.test("a control group that is short takes from its own pods at once, whatever waits elsewhere", async (t) => {
	const node = new FalseNode();
	node.groups.set("/kubepods", { totalMib: 4_096, availableMib: 2_000 });
	node.groups.set("/kubepods/a", { totalMib: 1_024, availableMib: 28 });
	const spare = new FalseSpare(node, 4);
	node.controller.use(spare);
	const [inside, beside, outside] = [
		new FalsePod(node, 10, { cgroup: "/kubepods/a" }),
		new FalsePod(node, 11, { cgroup: "/kubepods/b" }),
		new FalsePod(node, 12),
	];
	await node.clock.pass(5_000);
	t.strictSame([inside.balloonMib, beside.balloonMib, outside.balloonMib], [164, 0, 0]);
	t.equal(beside.askedAtMs.length, 0, "who has nothing to do with it is not asked");
	t.equal(spare.shrunk.length, 0);
});

t.test("the budget counts what VMs hold that wait, not what they might", async (t) => {
	const node = new FalseNode(1_800);
	const spare = new FalseSpare(node, 1);
	const pod = new FalsePod(node, 10);
	node.controller.use(spare);
	await node.clock.pass(5_000);
	t.equal(spare.shrunk.length, 0);
	t.equal(Math.round(spare.allowedMib ?? 0), 1_800 - 800 - 337, "what is left of it above one and a half times its reserve");
	t.match(await node.controller.summary(), { waitingBytes: 100 * MIB, short: false });
	node.residentMib.set(1, 1_000);
	await node.clock.pass(5_000);
	t.strictSame(spare.shrunk, [1]);
	t.equal(pod.balloonMib, 0);
});

t.test("a pool that is turned on on a node without pods is looked after at once", async (t) => {
	const node = new FalseNode();
	const spare = new FalseSpare(node, 0);
	spare.kept = false;
	node.controller.use(spare);
	await node.clock.pass(60_000);
	t.equal(node.looksAtMs.length, 0);
	spare.kept = true;
	spare.changed();
	await node.clock.pass(0);
	t.equal(node.looksAtMs.length, 1);
	t.ok(spare.allowedMib);
	node.availableMib = 100;
	node.pressure?.();
	await node.clock.pass(0);
	t.strictSame(spare.shrunk, [0], "with none that waits as well: none is made meanwhile");
	spare.kept = false;
	spare.changed();
	await node.clock.pass(2_000);
	t.equal(node.clock.nextMs, undefined);
});

t.test("one VMM that hangs holds nobody up, and is asked less and less often", async (t) => {
	const node = new FalseNode();
	const [hung, needy] = [new FalsePod(node, 10), new FalsePod(node, 11)];
	await node.clock.pass(5_000);
	for (const { memory } of [hung, needy]) await memory.setBalloon(300 * MIB);
	for (const pod of [hung, needy]) pod.availableMib = 100;
	node.availableMib = 600;
	await node.clock.pass(6_000);
	t.strictSame([hung.balloonMib, needy.balloonMib], [300, 300]);
	// The guest that is well needs memory at the moment at which the other one hangs.
	hung.hangs = true;
	needy.availableMib = 20;
	const [asked, beganAtMs] = [hung.askedAtMs.length, node.clock.nowMs()];
	await node.clock.pass(1_000);
	t.ok(needy.balloonMib < 300, "it has some back in the very look");
	await node.clock.pass(120_000);
	const long = pauses(node).filter((ms, index) => (node.looksAtMs[index] ?? 0) >= beganAtMs && ms > 1_000);
	t.strictSame(long, [2_000], "the first time it is waited for, for as long as a guest may take; then looks go on each second");
	const asks = hung.askedAtMs.slice(asked).map((atMs, index, all) => atMs - (all[index - 1] ?? atMs));
	t.ok(asks.length <= 5, `asked after ${asks.join(", ")} ms`);
	t.equal(hung.balloonMib, 300, "what it has been asked for is remembered");
	hung.hangs = false;
	await node.clock.pass(70_000);
	t.equal(hung.asked, 0, "it gets all of it back");
});

t.test("who needs memory gets it when that is known, not when the slowest has answered", async (t) => {
	const node = new FalseNode();
	const [slow, needy] = [new FalsePod(node, 10), new FalsePod(node, 11)];
	await node.clock.pass(5_000);
	for (const { memory } of [slow, needy]) await memory.setBalloon(300 * MIB);
	node.availableMib = 600;
	for (const pod of [slow, needy]) pod.availableMib = 100;
	await node.clock.pass(6_000);
	node.availableMib = 0;
	slow.slowMs = 1_900;
	needy.availableMib = 20;
	await node.clock.pass(1_000);
	t.equal(slow.askedAtMs.at(-1), node.clock.nowMs(), "the other one has been asked just now");
	t.equal(needy.balloonMib, 139);
	t.ok(needy.memory.held);
	needy.availableMib = 640;
	await node.clock.pass(29_000);
	t.equal(needy.balloonMib, 139, "it keeps what it got");
	await node.clock.pass(5_000);
	t.ok(needy.balloonMib > 139, "but not for ever while memory is short");
});

t.test("with many VMs each one of which a balloon holds something is asked each second, and all others in turns", async (t) => {
	const node = new FalseNode();
	node.availableMib = 600;
	const pods = Array.from({ length: 200 }, (_, index) => new FalsePod(node, 10 + index));
	// Guests that have nothing to give, and need nothing.
	for (const pod of pods) pod.availableMib = 100;
	const [others, holders] = [pods.slice(0, 120), pods.slice(120)];
	for (const pod of holders) await pod.memory.setBalloon(100 * MIB);
	await node.clock.pass(10_000);
	node.availableMib = 100;
	await node.clock.pass(1_000);
	const asks = async (of: readonly FalsePod[], ms: number): Promise<number[]> => {
		for (const pod of pods) pod.askedAtMs.length = 0;
		await node.clock.pass(ms);
		return [...new Set(of.map(({ askedAtMs }) => askedAtMs.length))].toSorted((one, other) => one - other);
	};
	t.strictSame(await asks(holders, 4_000), [4]);
	t.strictSame(await asks(others, 15_000), [8], "120 of them, 64 in a look");
	for (const pod of others.slice(0, 50)) pod.leave();
	t.strictSame(await asks(others.slice(50), 35_000), [32], "and 70, when some have left");
});

t.test("what an earlier snpd's VMM does not tell at first is learned in later looks", async (t) => {
	const node = new FalseNode();
	const pod = new FalsePod(node, 10, { adopted: true });
	pod.hangs = true;
	pod.asked = 200;
	await node.clock.pass(12_000);
	t.match((await node.controller.summary()).vms, [{ balloonBytes: null, exempt: null }]);
	pod.hangs = false;
	await node.clock.pass(30_000);
	t.equal(pod.memory.known, true);
	t.match((await node.controller.summary()).vms, [{ balloonBytes: 0, sizeBytes: 1024 * MIB }], "and given back, since memory is not short");
	t.equal(pod.asked, 0);
});

t.test("a guest that does not tell is left alone when it has all of its memory, and the controller sleeps then", async (t) => {
	const node = new FalseNode();
	const pod = new FalsePod(node, 10);
	await pod.memory.setBalloon(100 * MIB);
	pod.dumb = true;
	await node.clock.pass(5_000);
	t.equal(pod.memory.exempt, "agent");
	t.equal(pod.asked, 0);
	await node.clock.pass(10_000);
	t.equal(node.clock.nextMs, undefined);
});

t.test("a balloon that does not arrive is asked for what it has, and held", async (t) => {
	const node = new FalseNode();
	const pod = new FalsePod(node, 10);
	await node.clock.pass(5_000);
	pod.stuckMib = 60;
	node.availableMib = 400;
	await node.clock.pass(6_000);
	t.equal(pod.balloonMib, 368);
	await node.clock.pass(11_000);
	t.equal(pod.balloonMib, 60);
	t.ok(pod.memory.held);
});

t.test("a VM that could not be watched is watched later", async (t) => {
	const node = new FalseNode();
	node.groups.set("/kubepods", { totalMib: 2_048, availableMib: 2_048 });
	const pod = new FalsePod(node, 10, { cgroup: "/kubepods/p10" });
	node.full = true;
	await node.clock.pass(5_000);
	t.strictSame([pod.memory.watched, node.watches.size], [false, 0], "nothing half is left");
	node.full = false;
	await node.clock.pass(5_000);
	t.strictSame([pod.memory.watched, node.watches.size], [true, 2]);
	pod.leave();
	t.equal(node.watches.size, 0);
});

t.test("a sample that fails, and the controller's end", async (t) => {
	const node = new FalseNode();
	const pod = new FalsePod(node, 10);
	node.fails = true;
	await node.clock.pass(5_000);
	node.fails = false;
	await node.clock.pass(5_000);
	t.equal(node.looksAtMs.length, 2, "it looks again");
	t.equal(pod.memory.watched, true);
	t.equal(node.watches.size, 1);
	node.controller.close();
	t.strictSame([node.watches.size, node.clock.nextMs, node.pressure], [0, undefined, undefined]);
});
