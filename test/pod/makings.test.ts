import t from "tap";
import { deferred } from "../../shim/base/deadline.ts";
import { Makings } from "../../shim/pod/makings.ts";

const WAIT_MS = 10_000;
/** Work that only its abort ends. */
const untilAborted = ({ signal }: AbortController): Promise<never> =>
	new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { once: true }));

t.test("several things are made at a time, and each is known until it is made", async (t) => {
	const makings = new Makings("p");
	t.ok(makings.none);
	const [one, two] = [deferred<string>(), deferred<string>()];
	const first = makings.run("a", () => one.promise);
	const second = makings.run("b", () => two.promise);
	two.resolve("two");
	t.equal(await second, "two");
	t.equal(makings.find("b"), undefined);
	t.ok(makings.find("a"));
	t.notOk(makings.none);
	one.resolve("one");
	t.equal(await first, "one");
	t.ok(makings.none);
});

t.test("the abort of one thing leaves the others alone, and says what became of it", async (t) => {
	const makings = new Makings("p");
	const other = deferred<void>();
	const kept = makings.run("kept", () => other.promise);
	const made = makings.run("c", untilAborted);
	makings.abort("deleted", "c");
	makings.abort("deleted", "nothing of that name");
	await t.rejects(made, { reason: "wait.canceled", message: /container c is being deleted/ });
	other.resolve();
	await kept;
});

t.test("whoever gives everything up can wait for its end", async (t) => {
	const makings = new Makings("p");
	const cleaned = deferred<void>();
	const made = makings.run("c", async (abort) => {
		try {
			return await untilAborted(abort);
		} finally {
			await cleaned.promise;
		}
	});
	const pod = makings.run("p", untilAborted);
	makings.abort("removed");
	let ended = false;
	const wait = makings.ended(WAIT_MS).then(() => {
		ended = true;
	});
	await t.rejects(pod, { message: /pod p is being removed/ });
	t.notOk(ended, "one of them still cleans up");
	cleaned.resolve();
	await t.rejects(made, { message: /pod p is being removed/ });
	await wait;
	await makings.ended(WAIT_MS);
});
