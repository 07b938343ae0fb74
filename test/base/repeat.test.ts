import t from "tap";
import { deferred } from "../../shim/base/deadline.ts";
import { Repeat } from "../../shim/base/repeat.ts";

t.test("what is asked for while it is done is done once more, however often it was asked for", async (t) => {
	const runs = [deferred<void>(), deferred<void>(), deferred<void>()];
	let begun = 0;
	const repeat = new Repeat(() => runs[begun++]?.promise ?? Promise.resolve());
	for (let times = 0; times < 3; times++) repeat.ask();
	t.equal(begun, 1, "one at a time");
	runs[0]?.resolve();
	await new Promise(setImmediate);
	t.equal(begun, 2);
	runs[1]?.resolve();
	await new Promise(setImmediate);
	t.equal(begun, 2, "nobody has asked again");
	repeat.ask();
	repeat.ask();
	const closed = repeat.close();
	runs[2]?.resolve();
	await closed;
	repeat.ask();
	await new Promise(setImmediate);
	t.equal(begun, 3, "none after its end");
});
