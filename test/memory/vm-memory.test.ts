/** One VM's memory: growth and balloon in one order, and need before both. */

import t from "tap";

import { deferred } from "../../shim/base/deadline.ts";
import { Log } from "../../shim/base/log.ts";
import type { Exemption, VmChange, VmState } from "../../shim/memory/ports.ts";
import { VmMemory } from "../../shim/memory/vm-memory.ts";

const MIB = 1024 * 1024;

/** A VM that notes its changes; `gate` holds each up. */
function vm(known: boolean, state: VmState | Error, exempt?: Exemption) {
	const changes: VmChange[] = [];
	let gate: Promise<void> = Promise.resolve();
	const memory = new VmMemory({
		name: "p",
		namespace: "n",
		port: {
			change: async (change) => {
				await gate;
				changes.push(change);
			},
			guest: () => Promise.reject(new Error("nobody is asked")),
			state: () => (state instanceof Error ? Promise.reject(state) : Promise.resolve(state)),
		},
		sizeBytes: known ? 256 * MIB : undefined,
		floorBytes: 0,
		exempt,
		pid: 1,
		startTime: 0n,
		cgroup: undefined,
		log: new Log(() => undefined),
	});
	return { memory, changes, hold: (until: Promise<void>) => void (gate = until) };
}

const NEW: VmState = { sizeBytes: 256 * MIB, askedBytes: 0, actualBytes: 0 };

t.test("growing takes the balloon away in the same request, and nothing is taken for a while", async (t) => {
	const { memory, changes } = vm(true, NEW);
	await memory.setBalloon(100 * MIB);
	await memory.setBalloon(100 * MIB);
	await memory.grow({ vcpus: 2, ramBytes: 512 * MIB });
	t.strictSame(changes, [{ balloonBytes: 100 * MIB }, { vcpus: 2, ramBytes: 512 * MIB, balloonBytes: 0 }]);
	t.strictSame([memory.sizeBytes, memory.balloonBytes], [512 * MIB, 0]);
	t.ok(memory.held(Date.now()));
	t.notOk(memory.held(Date.now() + 60_000));
	await memory.setBalloon(100 * MIB);
	t.equal(changes.length, 2);
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
	for (const [get, stillHeldMs] of [
		["need", 29_000],
		["outOfMemory", 119_000],
	] as const) {
		const { memory, changes } = vm(true, NEW);
		await memory.setBalloon(64 * MIB);
		await memory[get]();
		t.strictSame(changes, [{ balloonBytes: 64 * MIB }, { balloonBytes: 0 }], get);
		t.ok(memory.held(Date.now() + stillHeldMs));
		await memory[get]();
		t.equal(changes.length, 2, "what is back is not asked for again");
	}
});

t.test("a VM of an earlier snpd has the balloon that its VMM tells of; growth waits to hear of it", async (t) => {
	const { memory, changes } = vm(false, { sizeBytes: 300 * MIB, askedBytes: 50 * MIB, actualBytes: 20 * MIB });
	await memory.grow({ ramBytes: 512 * MIB });
	t.strictSame(changes, [{ ramBytes: 512 * MIB, balloonBytes: 0 }]);
	t.equal(memory.exempt, undefined);
});

t.test("without a balloon, or without an answer, a VM is left alone, but can grow", async (t) => {
	for (const state of [{ ...NEW, askedBytes: undefined }, new Error("no answer")]) {
		const { memory, changes } = vm(false, state);
		await memory.grow({ ramBytes: 512 * MIB });
		t.equal(memory.exempt, "no balloon");
		t.strictSame(changes, [{ ramBytes: 512 * MIB }]);
	}
	const { memory } = vm(false, new Error("no answer"), "confidential");
	await memory.grow({ ramBytes: 512 * MIB });
	t.equal(memory.exempt, "confidential");
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
