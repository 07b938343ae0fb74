import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import t from "tap";
import { deferred } from "../../shim/base/deadline.ts";
import { listen, raceLasting } from "../../shim/base/lasting.ts";

t.test("listen tells every listener once, also those that come late, and none that has gone", async (t) => {
	const lasting = deferred<string>();
	const heard: string[] = [];
	listen(lasting.promise, () => heard.push("first"));
	const stop = listen(lasting.promise, () => heard.push("gone"));
	listen(lasting.promise, () => heard.push("second"));
	stop();
	lasting.resolve("end");
	await lasting.promise;
	listen(lasting.promise, () => heard.push("late"));
	const stopLate = listen(lasting.promise, () => heard.push("late and gone"));
	stopLate();
	await Promise.resolve();
	t.strictSame(heard, ["first", "second", "late"]);
});

t.test("listen also hears a rejection", async (t) => {
	const lasting = deferred<string>();
	const heard: string[] = [];
	listen(lasting.promise, () => heard.push("end"));
	lasting.reject(new Error("broken"));
	await t.rejects(lasting.promise, { message: "broken" });
	t.strictSame(heard, ["end"]);
});

t.test("raceLasting gives the outcome of what settles first", async (t) => {
	const lasting = deferred<string>();
	t.equal(await raceLasting(Promise.resolve("work"), lasting.promise), "work");
	await t.rejects(raceLasting(Promise.reject(new Error("work failed")), lasting.promise), { message: "work failed" });
	const work = deferred<string>();
	const race = raceLasting(work.promise, lasting.promise);
	lasting.resolve("end");
	t.equal(await race, "end");
	work.reject(new Error("late"));
	t.equal(await raceLasting(deferred<string>().promise, lasting.promise), "end");
});

/** Has a race won by an object, of which only a weak reference stays. */
async function raced(lasting: Promise<string>): Promise<WeakRef<object>> {
	const result = { of: "work" };
	await raceLasting(Promise.resolve(result), lasting);
	return new WeakRef(result);
}

t.test("raceLasting keeps nothing of work that has settled", async (t) => {
	setFlagsFromString("--expose-gc");
	const collect = runInNewContext("gc") as () => void;
	const lasting = deferred<string>();
	const left = await raced(lasting.promise);
	// A weak reference holds until the end of the turn in which it was made.
	await new Promise((resolve) => setImmediate(resolve));
	collect();
	t.equal(left.deref(), undefined);
	lasting.resolve("end");
});
