/** The pool and the memory of its node: how long it keeps back, how much it may have, and what counts. Time stands still unless it is let pass. */
import t from "tap";
import { deferred } from "../../../shim/base/deadline.ts";
import type { PoolTimes } from "../../../shim/pod/pool/pacing.ts";
import { ManualClock, settled } from "../../support/clock.ts";
import { FILE, large, plan, PoolBed, wants } from "../../support/pool-bed.ts";

const MIB = 1024 * 1024;
const TIMES: Partial<PoolTimes> = { hold: 60_000, longestHold: 400_000 };

function bedWithClock(times: Partial<PoolTimes> = TIMES): { readonly bed: PoolBed; readonly clock: ManualClock } {
	const clock = new ManualClock();
	return { bed: new PoolBed(times, clock), clock };
}

t.test("each time that it is shrunk soon after it was filled again it keeps back for twice as long, up to a limit", async (t) => {
	const { bed, clock } = bedWithClock();
	bed.pool.configure(FILE, wants(1));
	await clock.pass(0);
	t.equal(bed.boots, 1);
	let boots = 1;
	for (const holdMs of [60_000, 120_000, 240_000, 400_000, 400_000]) {
		bed.pool.shrink(1);
		await clock.pass(holdMs - 1_001);
		// As long as memory is short, which begins the time again and lengthens nothing.
		bed.pool.shrink(1);
		await clock.pass(holdMs - 1);
		t.equal(bed.boots, boots, `not within ${holdMs} ms`);
		await clock.pass(1);
		t.equal(bed.boots, ++boots, `after ${holdMs} ms`);
		await clock.pass(5_000);
	}
	await clock.pass(800_001);
	bed.pool.shrink(1);
	await clock.pass(60_000);
	t.equal(bed.boots, boots + 1, "a pool that was left alone for long begins anew");
	await bed.pool.close();
});

t.test("a VM is booted only where there is room for it, and what was just booted counts", async (t) => {
	const { bed, clock } = bedWithClock();
	bed.pool.allow(255 * MIB);
	bed.pool.configure(FILE, wants(3));
	await clock.pass(60_000);
	t.equal(bed.boots, 0);
	t.match(bed.pool.summary(), { wanted: 3, trouble: /no VM of 256 MiB is booted ahead: only 255 MiB/ }, "and snpctl says so");
	bed.pool.allow(600 * MIB);
	await clock.pass(60_000);
	t.equal(bed.boots, 2);
	bed.pool.allow(300 * MIB);
	await clock.pass(0);
	t.equal(bed.boots, 3);
	t.equal(bed.pool.summary().trouble, "");
	await bed.pool.close();
});

t.test("one that is being ended counts until it is gone, and nobody waits for it", async (t) => {
	const { bed, clock } = bedWithClock({ hold: 0 });
	const gate = deferred<undefined>();
	const config = { ...wants(2), pool: { size: 2, max: 0, memory_mib: 512 } };
	bed.pool.configure(FILE, config);
	await clock.pass(0);
	t.equal(bed.boots, 2);
	bed.endGate = gate.promise;
	const [first] = bed.pool.waiting;
	t.equal(bed.pool.shrink(1), 1);
	t.strictSame(bed.pool.ending, [first]);
	await clock.pass(60_000);
	t.equal(bed.boots, 2, "the bound is one of all that have memory");
	gate.resolve(undefined);
	await clock.pass(0);
	t.strictSame(bed.pool.ending, []);
	t.equal(bed.boots, 3);
	await bed.pool.close();
});

t.test("the memory of all configurations' VMs has one bound, and none takes it all", async (t) => {
	const { bed, clock } = bedWithClock();
	const pool = { size: 4, max: 0, memory_mib: 1024 };
	for (const file of ["/a", "/b"]) bed.pool.configure(file, { ...wants(4), pool });
	await clock.pass(0);
	t.equal(bed.boots, 4);
	t.equal(await bed.pool.take("/b", large, { ...wants(4), pool }), undefined);
	await settled();
	t.equal(bed.pool.summary().wanted, 2, "a large one takes the place of three");
	bed.pool.configure("/c", { ...wants(4), pool: { ...pool, memory_mib: 2048 } });
	await clock.pass(0);
	t.equal(bed.pool.summary().wanted, 6, "one with a wider bound may use what others must leave");
	await bed.pool.close();
});

t.test("a date that is set changes nothing", async (t) => {
	const { bed, clock } = bedWithClock();
	const { now } = Date;
	t.teardown(() => (Date.now = now));
	bed.pool.configure(FILE, wants(1));
	await clock.pass(0);
	bed.pool.shrink(1);
	Date.now = () => now() + 86_400_000;
	await clock.pass(59_999);
	t.equal(bed.boots, 1);
	Date.now = () => now() - 86_400_000;
	await clock.pass(1);
	t.equal(bed.boots, 2);
	t.ok(bed.pool.summary().vms.every(({ ageMs }) => ageMs >= 0));
	await bed.pool.take(FILE, plan, wants(1));
	await bed.pool.close();
});
