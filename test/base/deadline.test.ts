import { getEventListeners } from "node:events";
import t from "tap";
import { deferred, withDeadline } from "../../shim/base/deadline.ts";
import { ShimError } from "../../shim/base/errors.ts";
import { failing } from "./failing.ts";

t.test("withDeadline gives the result of work that ends in time", async (t) => {
	const controller = new AbortController();
	t.equal(await withDeadline({ what: "a", timeoutMs: 60_000, signal: controller.signal }, async () => 7), 7);
	t.equal(getEventListeners(controller.signal, "abort").length, 0, "no listener is left behind");
});

t.test("withDeadline names what was waited for, and aborts the work", async (t) => {
	let seen: AbortSignal | undefined;
	const wait = withDeadline({ what: "the agent of pod a", timeoutMs: 1 }, (signal) => {
		seen = signal;
		return new Promise<never>(() => undefined);
	});
	await t.rejects(wait, failing({ reason: "wait.deadline", message: "the agent of pod a: no result within 1 ms" }));
	t.equal(seen?.aborted, true);
	t.ok(seen?.reason instanceof ShimError);
});

t.test("withDeadline takes its reason and remedy from the caller", async (t) => {
	const wait = withDeadline(
		{ what: "a", timeoutMs: 1, reason: "vmm.boot-timeout", remedy: "look" },
		() => new Promise<never>(() => undefined),
	);
	await t.rejects(wait, failing({ reason: "vmm.boot-timeout", code: "deadline-exceeded", remedy: "look" }));
});

t.test("withDeadline ends when the caller gives up, with the caller's own ShimError if it has one", async (t) => {
	const never = (): Promise<never> => new Promise(() => undefined);
	const plain = new AbortController();
	const first = withDeadline({ what: "a", timeoutMs: 60_000, signal: plain.signal }, never);
	plain.abort();
	await t.rejects(first, failing({ reason: "wait.canceled", message: "a: canceled" }));

	const own = new AbortController();
	const reason = new ShimError("pod.lost", "the VM has ended");
	const second = withDeadline({ what: "a", timeoutMs: 60_000, signal: own.signal }, never);
	own.abort(reason);
	t.equal(await second.catch((error: unknown) => error), reason);
});

t.test("withDeadline does not start work for a caller that has given up", async (t) => {
	let started = false;
	const wait = withDeadline({ what: "a", timeoutMs: 60_000, signal: AbortSignal.abort() }, async () => {
		started = true;
	});
	await t.rejects(wait, failing({ reason: "wait.canceled" }));
	t.equal(started, false);
});

t.test("withDeadline takes times that are longer than a timer can be", async (t) => {
	t.equal(await withDeadline({ what: "a", timeoutMs: Number.MAX_SAFE_INTEGER }, async () => 1), 1);
});

t.test("withDeadline swallows the late failure of work", async (t) => {
	const late = deferred<never>();
	await t.rejects(
		withDeadline({ what: "a", timeoutMs: 1 }, () => late.promise),
		failing({ reason: "wait.deadline" }),
	);
	late.reject(new Error("too late"));
});

t.test("deferred may be rejected with nobody waiting", async (t) => {
	const wait = deferred<number>();
	wait.reject(new Error("unheard"));
	await t.rejects(wait.promise, { message: "unheard" });
});
