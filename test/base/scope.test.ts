import { mock } from "node:test";
import t from "tap";
import type { ShimError } from "../../shim/base/errors.ts";
import { Scope } from "../../shim/base/scope.ts";

t.test("Scope.close releases in reverse order, each once", async (t) => {
	const order: string[] = [];
	const scope = new Scope("pod a");
	scope.defer("first", () => void order.push("first"));
	scope.defer("second", async () => {
		await Promise.resolve();
		order.push("second");
	});
	scope.defer("third", () => void order.push("third"));
	await Promise.all([scope.close(), scope.close()]);
	await scope.close();
	t.same(order, ["third", "second", "first"]);
	t.equal(scope.closed, true);
});

t.test("Scope.close goes on after a failure and reports every one", async (t) => {
	const order: string[] = [];
	const scope = new Scope("pod a");
	scope.defer("tap", () => {
		throw new Error("tap is busy");
	});
	scope.defer("mount", () => void order.push("mount"));
	scope.defer("vmm", () => Promise.reject(new Error("no such process")));
	const error = await scope.close().then(
		() => undefined,
		(thrown: unknown) => thrown,
	);
	t.ok(error instanceof AggregateError);
	t.match((error as AggregateError).message, "releasing vmm of pod a failed: no such process; releasing tap of pod a failed: tap is busy");
	t.equal((error as AggregateError).errors.length, 2);
	t.same(order, ["mount"]);
});

t.test("Scope.defer after close releases at once", async (t) => {
	const scope = new Scope("pod a");
	await scope.close();
	const released = await new Promise<string>((resolve) => scope.defer("late", () => resolve("late")));
	t.equal(released, "late");
});

t.test("Scope.defer after a close that failed releases as well", async (t) => {
	const scope = new Scope("pod a");
	scope.defer("tap", () => Promise.reject(new Error("tap is busy")));
	const closed = scope.close();
	let released = false;
	scope.defer("late", () => void (released = true));
	await t.rejects(closed, { message: /tap is busy/ });
	await t.rejects(scope.close(), { message: /tap is busy/ });
	t.equal(released, true);
	await new Promise<void>((resolve) => scope.defer("later", resolve));
});

t.test("Scope.defer during close releases after what is being released", async (t) => {
	const order: string[] = [];
	let letGo: () => void = () => undefined;
	const scope = new Scope("pod a");
	scope.defer("slow", () => new Promise<void>((resolve) => (letGo = resolve)).then(() => void order.push("slow")));
	const first = scope.close();
	scope.defer("late", () => void order.push("late"));
	letGo();
	await Promise.all([first, scope.close()]);
	t.same(order, ["slow", "late"]);
});

t.test("Scope.take hands the newest of a name over to its caller", async (t) => {
	const order: string[] = [];
	const scope = new Scope("pod a");
	for (const name of ["old", "other", "new"]) scope.defer(name === "other" ? "other" : "disk", () => void order.push(name));
	const release = scope.take("disk");
	t.equal(scope.take("nothing of that name"), undefined);
	await scope.close();
	t.same(order, ["other", "old"]);
	await release?.();
	t.same(order, ["other", "old", "new"]);
});

t.test("Scope.release gives back the newest of a name and forgets it", async (t) => {
	const order: string[] = [];
	const scope = new Scope("pod a");
	scope.defer("disk", () => void order.push("disk 1"));
	scope.defer("disk", () => void order.push("disk 2"));
	await scope.release("disk");
	await scope.release("unknown");
	t.same(order, ["disk 2"]);
	await scope.close();
	t.same(order, ["disk 2", "disk 1"]);
});

t.test("Scope.moveTo hands everything over, in order", async (t) => {
	const order: string[] = [];
	const boot = new Scope("boot");
	const pod = new Scope("pod a");
	pod.defer("pod", () => void order.push("pod"));
	boot.defer("one", () => void order.push("one"));
	boot.defer("two", () => void order.push("two"));
	boot.moveTo(pod);
	await boot.close();
	t.same(order, []);
	await pod.close();
	t.same(order, ["two", "one", "pod"]);
});

t.test("Scope.child closes with its parent", async (t) => {
	const order: string[] = [];
	const pod = new Scope("pod a");
	pod.defer("vmm", () => void order.push("vmm"));
	const child = pod.child("container b");
	child.defer("mount", () => void order.push("mount"));
	t.equal(child.name, "pod a/container b");
	await pod.close();
	t.same(order, ["mount", "vmm"]);
});

t.test("Scope.close does not wait for a release for ever", async (t) => {
	mock.timers.enable({ apis: ["setTimeout"] });
	t.teardown(() => mock.timers.reset());
	const scope = new Scope("pod a");
	scope.defer("stuck", () => new Promise(() => undefined));
	const closing = scope.close();
	mock.timers.tick(10_000);
	const error = await closing.then(
		() => undefined,
		(thrown: unknown) => thrown,
	);
	const [failure] = (error as AggregateError).errors as ShimError[];
	t.match(failure?.cause, { reason: "wait.deadline", message: "stuck of pod a was not released in 10000 ms" });
});

t.test("Scope forgets a child that closed before it, wherever the child was moved", async (t) => {
	const closed: string[] = [];
	const parent = new Scope("boot");
	const owner = new Scope("pod");
	const [early, moved, last] = ["early", "moved", "last"].map((name) => {
		const child = parent.child(name);
		child.defer("failing", () => {
			closed.push(name);
			throw new Error(`${name} fails`);
		});
		return child;
	});
	await t.rejects(early?.close() ?? Promise.resolve(), /early fails/);
	parent.moveTo(owner);
	await t.rejects(moved?.close() ?? Promise.resolve(), /moved fails/);
	await t.rejects(owner.close(), { message: /^releasing pod: releasing last of pod failed: releasing boot\/last: .*last fails$/ });
	t.equal(last?.closed, true);
	t.same(closed, ["early", "moved", "last"]);
});
