import t from "tap";
import { deferred } from "../../shim/base/deadline.ts";
import { Mailbox } from "../../shim/base/mailbox.ts";
import { failing } from "./failing.ts";

t.test("Mailbox.run runs one after another, in order, whatever the outcome", async (t) => {
	const order: string[] = [];
	const gate = deferred<void>();
	const mailbox = new Mailbox("pod a");
	const first = mailbox.run(async () => {
		order.push("first starts");
		await gate.promise;
		order.push("first ends");
		throw new Error("first failed");
	});
	const second = mailbox.run(async () => {
		order.push("second");
		return 2;
	});
	gate.resolve();
	await t.rejects(first, { message: "first failed" });
	t.equal(await second, 2);
	t.same(order, ["first starts", "first ends", "second"]);
});

t.test("Mailbox.run refuses beyond its limit, but for what must always be taken, and recovers", async (t) => {
	const gate = deferred<void>();
	const mailbox = new Mailbox("pod a", 2);
	const running = mailbox.run(() => gate.promise);
	const waiting = mailbox.run(async () => undefined);
	await t.rejects(
		mailbox.run(async () => undefined),
		failing({ reason: "busy", message: "pod a has 2 calls waiting" }),
	);
	const last = mailbox.run(async () => "the end", { always: true });
	gate.resolve();
	await Promise.all([running, waiting]);
	t.equal(await last, "the end");
	t.equal(await mailbox.run(async () => 3), 3);
});
