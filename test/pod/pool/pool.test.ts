/** When the pool boots and ends VMs. Its VMs are false here: what is tested is their number and their moment. */
import t from "tap";
import { deferred } from "../../../shim/base/deadline.ts";
import { FILE, keyOf, large, NEVER, plan, PoolBed, WAIT_MS, wants } from "../../support/pool-bed.ts";
import { eventually } from "../../support/retry.ts";

t.test("it is filled one VM at a time, gives each once, and is filled again", async (t) => {
	const bed = new PoolBed();
	const open = deferred<undefined>();
	bed.gate = open.promise;
	bed.pool.configure(FILE, wants(2));
	await eventually("a boot", WAIT_MS, () => (bed.boots > 0 ? true : undefined));
	t.equal(bed.boots, 1, "the second waits for the first");
	open.resolve(undefined);
	await bed.holds(2);
	const taken = await Promise.all([1, 2, 3].map(() => bed.pool.take(FILE, plan, wants(2))));
	t.strictSame(
		taken.map((vm) => vm?.name),
		["1", "2", undefined],
	);
	t.match(bed.pool.summary(), { hits: 2, misses: 1 });
	await bed.holds(2);
	t.notOk(
		taken.some((vm) => vm?.ended),
		"those that were taken are others' to end",
	);
	await bed.pool.close();
	t.ok(bed.booted.slice(2).every(({ ended }) => ended));
});

t.test("nothing is booted while a start is under way, unless one is missing for long", async (t) => {
	const bed = new PoolBed();
	const start = deferred<undefined>();
	const starting = bed.pool.during(() => start.promise);
	bed.pool.configure(FILE, wants(1));
	await eventually("the wish", WAIT_MS, () => (bed.pool.summary().wanted === 1 ? true : undefined));
	t.equal(bed.boots, 0);
	start.resolve(undefined);
	await starting;
	await bed.holds(1);
	await bed.pool.close();

	const impatient = new PoolBed({ patience: 0 });
	const other = deferred<undefined>();
	const busy = impatient.pool.during(() => other.promise);
	impatient.pool.configure(FILE, wants(1));
	await impatient.holds(1);
	other.resolve(undefined);
	await busy;
	await impatient.pool.close();
});

t.test("it follows what pods ask for, and a changed configuration or file", async (t) => {
	const bed = new PoolBed();
	bed.pool.configure(FILE, wants(1));
	const [usual] = await bed.holds(1);
	t.equal(await bed.pool.take(FILE, large, wants(1)), undefined, "no VM stands for one of another kind");
	const [asked] = await eventually("the large one", WAIT_MS, async () => {
		const vms = await bed.holds(1);
		return vms[0]?.key === keyOf(large, "1") ? vms : undefined;
	});
	t.ok(usual?.ended);
	bed.files = "2";
	bed.pool.review();
	await eventually("the end of the old one", WAIT_MS, () => (asked?.ended === true ? true : undefined));
	const [fresh] = await bed.holds(1);
	t.equal(fresh?.key, keyOf(large, "2"));
	bed.pool.configure(FILE, wants(0));
	t.equal(bed.emptied, 0);
	await bed.holds(0);
	t.ok(fresh?.ended);
	await eventually("the word that nothing is left", WAIT_MS, () => (bed.emptied > 0 ? true : undefined));
	t.equal(await bed.pool.take(FILE, plan, wants(0)), undefined);
	t.match(bed.pool.summary(), { hits: 0, misses: 1 }, "who wants no pool is not counted");
	t.equal(await bed.pool.take(FILE, plan, wants(1)), undefined);
	t.equal(bed.pool.summary().wanted, 0, "a pod with an older configuration brings it not back");
	await bed.pool.close();
});

t.test("a boot that nobody wants any more is given up", async (t) => {
	const bed = new PoolBed();
	const open = deferred<undefined>();
	bed.gate = open.promise;
	bed.pool.configure(FILE, wants(1));
	await eventually("a boot", WAIT_MS, () => (bed.boots > 0 ? true : undefined));
	bed.pool.configure(FILE, wants(0));
	await eventually("the review", WAIT_MS, () => (bed.pool.summary().wanted === 0 ? true : undefined));
	open.resolve(undefined);
	await bed.holds(0);
	t.equal(bed.booted.length, 0);
	t.equal(bed.pool.summary().trouble, "", "which is no failure");
	await eventually("the word that nothing is left", WAIT_MS, () => (bed.emptied > 0 ? true : undefined));
	await bed.pool.close();
});

t.test("a VM that dies is replaced; failures are told, and put the next boot off", async (t) => {
	const bed = new PoolBed({ retry: NEVER, longestRetry: NEVER });
	bed.pool.configure(FILE, wants(1));
	const [vm] = await bed.holds(1);
	vm?.die.resolve("killed");
	await eventually("its end", WAIT_MS, () => (vm?.ended === true ? true : undefined));
	await bed.holds(0);
	t.match(bed.pool.summary().trouble, /a VM of the pool has ended: killed/);
	t.equal(bed.boots, 1);
	bed.pool.configure(FILE, wants(2));
	await bed.holds(2);
	t.equal(bed.pool.summary().trouble, "", "a new configuration begins anew");
	await bed.pool.close();

	const failing = new PoolBed();
	failing.gate = Promise.reject(new Error("no kernel"));
	failing.gate.catch(() => undefined);
	failing.pool.configure(FILE, wants(1));
	await eventually("a failure", WAIT_MS, () => (/no kernel/.test(failing.pool.summary().trouble) ? true : undefined));
	failing.gate = undefined;
	await failing.holds(1);
	t.equal(failing.pool.summary().trouble, "");
	await failing.pool.close();
});

t.test("where pods can't start in its VMs it keeps back, longer each time, and pods start without", async (t) => {
	const bed = new PoolBed({ retry: NEVER, longestRetry: NEVER });
	bed.pool.configure(FILE, wants(1));
	await bed.holds(1);
	t.ok(await bed.pool.take(FILE, plan, wants(1)));
	bed.pool.failed(new Error("no slot"));
	t.equal(await bed.pool.take(FILE, plan, wants(1)), undefined);
	await bed.holds(0);
	t.equal(bed.boots, 1);
	t.match(bed.pool.summary().trouble, /a pod could not start in a VM of the pool: no slot/);
	await bed.pool.close();
});

t.test("it shrinks when it is told to, the oldest first, and stays so for a while", async (t) => {
	const bed = new PoolBed({ hold: NEVER });
	bed.pool.configure(FILE, wants(3));
	const vms = await bed.holds(3);
	t.strictSame(bed.pool.waiting, vms);
	t.equal(bed.pool.shrink(1), 1);
	t.strictSame(
		vms.map(({ ended }) => ended),
		[true, false, false],
	);
	t.equal(bed.pool.shrink(3), 2);
	await bed.holds(0);
	t.equal(bed.boots, 3);
	t.equal(bed.pool.shrink(1), 0);
	await bed.pool.close();
});

t.test("files that are missing for a moment end no VM, and boot none", async (t) => {
	const bed = new PoolBed();
	bed.pool.configure(FILE, wants(2));
	const vms = await bed.holds(2);
	bed.missing = true;
	bed.pool.review();
	await eventually("the word of it", WAIT_MS, () => (/no kernel/.test(bed.pool.summary().trouble) ? true : undefined));
	t.strictSame(bed.pool.waiting, vms);

	const next = new PoolBed();
	next.missing = true;
	next.pool.configure(FILE, wants(1));
	next.pool.adopt(vms);
	await eventually("the word of it", WAIT_MS, () => (/no kernel/.test(next.pool.summary().trouble) ? true : undefined));
	t.strictSame(next.pool.waiting, vms, "nor those of an earlier snpd");
	next.missing = false;
	next.pool.review();
	await eventually("the end of one that nobody wants", WAIT_MS, () => (next.pool.waiting.length === 1 ? true : undefined));
	t.equal(next.boots + bed.boots, 2);
	await bed.pool.close();
});

t.test("a VM that its pod could not use waits on, and counts as none", async (t) => {
	const bed = new PoolBed();
	bed.pool.configure(FILE, wants(1));
	const [vm] = await bed.holds(1);
	bed.gate = new Promise(() => undefined);
	const taken = await bed.pool.take(FILE, plan, wants(1));
	t.equal(taken, vm);
	if (taken !== undefined) bed.pool.giveBack(taken);
	t.match(bed.pool.summary(), { hits: 0, misses: 1 });
	t.equal(await bed.pool.take(FILE, plan, wants(1)), vm);
});

t.test("a VM that ended while a pod had it is not given to another, nor one that comes back after the end of all", async (t) => {
	const bed = new PoolBed();
	bed.pool.configure(FILE, wants(1));
	await bed.holds(1);
	bed.gate = new Promise(() => undefined);
	const dead = await bed.pool.take(FILE, plan, wants(1));
	dead?.die.resolve("killed");
	if (dead !== undefined) bed.pool.giveBack(dead);
	await eventually("the dead VM is ended", WAIT_MS, () => (dead?.ended === true ? true : undefined));
	t.equal(await bed.pool.take(FILE, plan, wants(1)), undefined);
	const other = new PoolBed();
	other.pool.configure(FILE, wants(1));
	await other.holds(1);
	const late = await other.pool.take(FILE, plan, wants(1));
	await other.pool.close();
	if (late !== undefined) other.pool.giveBack(late);
	t.equal(late?.ended, true);
});

t.test("VMs of an earlier snpd are kept if they are wanted", async (t) => {
	const old = new PoolBed();
	old.pool.configure(FILE, wants(2));
	const vms = await old.holds(2);
	const bed = new PoolBed();
	bed.pool.configure(FILE, wants(1));
	bed.gate = new Promise(() => undefined);
	bed.pool.adopt(vms);
	await eventually("the end of one", WAIT_MS, () => (vms[1]?.ended === true ? true : undefined));
	t.equal((await bed.pool.take(FILE, plan, wants(1)))?.name, vms[0]?.name);
});
