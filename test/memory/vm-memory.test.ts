/** One VM's memory: growth and balloon in one order, and need before both. */

import t from "tap";

import { deferred } from "../../shim/base/deadline.ts";
import { Log } from "../../shim/base/log.ts";
import type { Exemption, VmChange, VmState } from "../../shim/memory/ports.ts";
import { VmMemory } from "../../shim/memory/vm-memory.ts";
import { ManualClock, settled } from "../support/clock.ts";

const MIB = 1024 * 1024;

/** A VM that notes its changes; `gate` holds each up. */
function vm(known: boolean, state: VmState | Error, exempt?: Exemption) {
	const changes: VmChange[] = [];
	const clock = new ManualClock();
	let gate: Promise<void> = Promise.resolve();
	let told = state;
	const memory = new VmMemory({
		name: "p",
		namespace: "n",
		port: {
			change: async (change) => {
				await gate;
				changes.push(change);
			},
			guest: () => Promise.reject(new Error("nobody is asked")),
			state: () => (told instanceof Error ? Promise.reject(told) : Promise.resolve(told)),
		},
		sizeBytes: known ? 256 * MIB : undefined,
		floorBytes: 0,
		exempt,
		pid: 1,
		startTime: 0n,
		cgroup: undefined,
		log: new Log(() => undefined),
		clock,
	});
	return { memory, changes, clock, hold: (until: Promise<void>) => void (gate = until), tells: (next: VmState) => void (told = next) };
}

const NEW: VmState = { sizeBytes: 256 * MIB, askedBytes: 0, actualBytes: 0 };

t.test("growing takes the balloon away in the same request, and nothing is taken for a while", async (t) => {
	const { memory, changes, clock } = vm(true, NEW);
	await memory.setBalloon(100 * MIB);
	await memory.setBalloon(100 * MIB);
	await memory.grow({ vcpus: 2, ramBytes: 512 * MIB });
	t.strictSame(changes, [{ balloonBytes: 100 * MIB }, { vcpus: 2, ramBytes: 512 * MIB, balloonBytes: 0 }]);
	t.strictSame([memory.sizeBytes, memory.balloonBytes], [512 * MIB, 0]);
	await memory.setBalloon(100 * MIB);
	t.equal(changes.length, 2);
	await clock.pass(29_999);
	t.ok(memory.held);
	await clock.pass(1);
	t.notOk(memory.held);
});

t.test("a balloon that waits behind growth is not blown up after it", async (t) => {
	const { memory, changes, hold } = vm(true, NEW);
	const { promise, resolve } = deferred<void>();
	hold(promise);
	const grown = memory.grow({ ramBytes: 512 * MIB });
	const blown = memory.setBalloon(64 * MIB);
	resolve();
	await Promise.all([grown, blown]);
	t.strictSame(changes, [{ ramBytes: 512 * MIB }]);
});

t.test("a guest that needs memory, or ran out of it, gets all of it back", async (t) => {
	for (const [get, heldMs] of [
		["need", 30_000],
		["outOfMemory", 120_000],
	] as const) {
		const { memory, changes, clock } = vm(true, NEW);
		await memory.setBalloon(64 * MIB);
		await memory[get]();
		t.strictSame(changes, [{ balloonBytes: 64 * MIB }, { balloonBytes: 0 }], get);
		await memory[get]();
		t.equal(changes.length, 2, "what is back is not asked for again");
		await clock.pass(heldMs - 1);
		t.ok(memory.held);
		await clock.pass(1);
		t.notOk(memory.held);
	}
});

t.test("a VM of an earlier snpd has the balloon that its VMM tells of; growth waits to hear of it", async (t) => {
	const { memory, changes } = vm(false, { sizeBytes: 300 * MIB, askedBytes: 50 * MIB, actualBytes: 20 * MIB });
	await memory.grow({ ramBytes: 512 * MIB });
	t.strictSame(changes, [{ ramBytes: 512 * MIB, balloonBytes: 0 }]);
	t.equal(memory.exempt, undefined);
});

t.test("a VM without a balloon is left alone, but can grow", async (t) => {
	for (const [state, exempt] of [
		[{ ...NEW, askedBytes: undefined }, undefined],
		[new Error("no answer"), "confidential"],
	] as const) {
		const { memory, changes } = vm(false, state, exempt);
		await memory.grow({ ramBytes: 512 * MIB });
		t.equal(memory.exempt, exempt ?? "no balloon");
		t.strictSame(changes, [{ ramBytes: 512 * MIB }]);
	}
});

t.test("what an earlier snpd asked for is unknown until the VMM tells, and given back all the same", async (t) => {
	const { memory, changes, tells } = vm(false, new Error("a slow start"));
	await settled();
	t.equal(memory.known, false);
	t.equal(memory.exempt, undefined);
	await memory.need();
	t.strictSame(changes, [{ balloonBytes: 0 }]);
	await memory.grow({ ramBytes: 512 * MIB });
	await settled();
	t.strictSame(
		changes.slice(1),
		[{ ramBytes: 512 * MIB }, { balloonBytes: 0 }],
		"a VM that may have no balloon grows without a word of it",
	);
	t.equal(memory.known, false);
	tells({ sizeBytes: 512 * MIB, askedBytes: 100 * MIB, actualBytes: 100 * MIB });
	await memory.grow({ ramBytes: 768 * MIB });
	t.strictSame(changes.slice(3), [{ ramBytes: 768 * MIB, balloonBytes: 0 }], "it is asked again");
	t.equal(memory.known, true);
});

t.test("what a VMM said before a change does not count after it", async (t) => {
	const { memory } = vm(true, NEW);
	const { revision } = memory;
	await memory.setBalloon(100 * MIB);
	memory.accept({ ...NEW, askedBytes: 50 * MIB }, revision);
	t.equal(memory.balloonBytes, 100 * MIB);
	memory.accept({ ...NEW, askedBytes: 50 * MIB }, memory.revision);
	t.equal(memory.balloonBytes, 50 * MIB);
});

t.test("a VM is left alone for good once it has all of its memory, and not before", async (t) => {
	const { memory, changes, hold } = vm(true, NEW);
	await memory.setBalloon(64 * MIB);
	const lost = Promise.reject(new Error("no answer"));
	lost.catch(() => undefined);
	hold(lost);
	await memory.leaveAlone("agent");
	t.equal(memory.exempt, undefined);
	t.ok(memory.resting);
	hold(Promise.resolve());
	await memory.leaveAlone("agent");
	t.equal(memory.exempt, "agent");
	t.strictSame(changes.at(-1), { balloonBytes: 0 });
});

t.test("one that fails rests, longer each time up to a minute, until it answers", async (t) => {
	const { memory, clock } = vm(true, NEW);
	for (const restMs of [5_000, 10_000, 20_000, 40_000, 60_000, 60_000]) {
		memory.failed();
		await clock.pass(restMs - 1);
		t.ok(memory.resting, `${restMs} ms`);
		await clock.pass(1);
		t.notOk(memory.resting);
	}
	memory.answered();
	memory.failed();
	await clock.pass(5_000);
	t.notOk(memory.resting);
});

t.test("needs that come while memory is being given back ask once", async (t) => {
	const { memory, changes, hold } = vm(true, NEW);
	await memory.setBalloon(64 * MIB);
	const { promise, resolve } = deferred<void>();
	hold(promise);
	const needs = Array.from({ length: 200 }, () => memory.need());
	resolve();
	await Promise.all(needs);
	t.strictSame(changes.slice(1), [{ balloonBytes: 0 }]);
});

t.test("a balloon whose change was never answered counts, and goes like any other", async (t) => {
	const { memory, changes, hold } = vm(true, NEW);
	const lost = Promise.reject(new Error("no answer"));
	lost.catch(() => undefined);
	hold(lost);
	await t.rejects(memory.setBalloon(100 * MIB), { message: "no answer" });
	t.equal(memory.balloonBytes, 100 * MIB);
	hold(Promise.resolve());
	await memory.need();
	t.strictSame(changes, [{ balloonBytes: 0 }]);
	t.equal(memory.balloonBytes, 0);
});
