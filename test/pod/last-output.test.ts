import t from "tap";
import type { Test } from "tap";
import { deferred } from "../../shim/base/deadline.ts";
import { ShimError } from "../../shim/base/errors.ts";
import { LastOutput } from "../../shim/pod/last-output.ts";
import type { LastOutputOptions } from "../../shim/pod/last-output.ts";
import { failing } from "../base/failing.ts";

type Reading = { bytes: number; unread: number; reader: boolean };
const STUCK: Reading = { bytes: 100, unread: 50, reader: true };

/** A stream whose reader is what `answer` says, and the wait for it. `held` settles when the wait goes on for a reader. */
function output(t: Test, answer: (times: number) => Reading | undefined, options: Partial<LastOutputOptions> = {}) {
	const done = deferred<{ bytes: number }>();
	const opened = Promise.resolve({ hostPort: 1 });
	const held = deferred<undefined>();
	let times = 0;
	const ask = (): Promise<Reading> => {
		const reading = answer(++times);
		return reading === undefined ? new Promise<Reading>(() => undefined) : Promise.resolve(reading);
	};
	const stream = { id: 1, opened, done: done.promise, ask, close: () => undefined };
	const last = new LastOutput({
		name: "container c",
		streams: [stream],
		drainMs: 10,
		killed: false,
		onHeld: () => held.resolve(undefined),
		...options,
	});
	t.teardown(() => last.giveUp());
	return { last, done, held: held.promise };
}

const late = (message: RegExp) => failing({ reason: "wait.deadline", message });

t.test("output that is read ends the wait, held or not", async (t) => {
	const quick = output(t, () => STUCK);
	const waiting = quick.last.wait();
	quick.done.resolve({ bytes: 100 });
	await waiting;
	const slow = output(t, () => STUCK);
	const held = slow.last.wait();
	await slow.held;
	slow.done.resolve({ bytes: 100 });
	await held;
	t.pass();
});

t.test("a failed stream, and one that is given up, end it", async (t) => {
	const broken = output(t, () => STUCK);
	const waiting = broken.last.wait();
	broken.done.reject(new ShimError("stream.failed", "the keeper is gone"));
	await t.rejects(waiting, failing({ reason: "stream.failed" }));
	const released = output(t, () => STUCK);
	const held = released.last.wait();
	await released.held;
	released.last.giveUp();
	await t.rejects(held, failing({ reason: "wait.canceled" }));
});

t.test("nobody who reads, nothing to read, no answer, and a limit of 0 hold nothing back", async (t) => {
	for (const reading of [{ ...STUCK, reader: false }, { ...STUCK, unread: 0 }, undefined]) {
		await t.rejects(output(t, () => reading).last.wait(), late(/nobody reads|holds it open|not moved/));
	}
	await t.rejects(output(t, () => STUCK, { drainMs: 0 }).last.wait(), late(/within 0 ms/));
});

t.test("a killed process waits for a reader that goes on only, also when it is killed after its end", async (t) => {
	await t.rejects(output(t, () => STUCK, { killed: true }).last.wait(), late(/taken nothing for 10 ms/));
	const { last, held } = output(t, () => STUCK);
	const waiting = last.wait();
	await held;
	last.hurry();
	await t.rejects(waiting, late(/taken nothing for 10 ms/));
	const reading = output(t, (times) => ({ ...STUCK, bytes: 100 + times }), { killed: true });
	const read = reading.last.wait();
	await reading.held;
	reading.done.resolve({ bytes: 500 });
	await read;
});

t.test("what is still on its way in the guest when the reader has taken all is waited for, but not for ever", async (t) => {
	const flowing = (times: number): Reading => ({ ...STUCK, unread: times === 1 ? 50 : 0 });
	const { last, done, held } = output(t, flowing);
	const waiting = last.wait();
	await held;
	done.resolve({ bytes: 200 });
	await waiting;
	await t.rejects(output(t, flowing).last.wait(), late(/holds it open/));
	const chatty = output(t, (times) => ({ ...STUCK, bytes: times, unread: 0 }));
	await t.rejects(chatty.last.wait(), late(/holds it open/));
});

t.test("output that never ends is another process's", async (t) => {
	const { last } = output(t, (times) => ({ ...STUCK, bytes: times * 3 * 1024 * 1024 }));
	await t.rejects(last.wait(), late(/another process/));
});
