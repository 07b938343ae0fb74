import t from "tap";
import { CATALOGUE } from "../../shim/base/catalogue.ts";
import { asShimError, errnoOf, explain, messageOf, ShimError } from "../../shim/base/errors.ts";
import type { ErrorReason } from "../../shim/base/errors.ts";

t.test("every reason has a code and a remedy", async (t) => {
	for (const reason of Object.keys(CATALOGUE) as ErrorReason[]) {
		const error = new ShimError(reason, "x");
		t.type(error.code, "string", reason);
		t.ok(error.remedy.length > 0, reason);
		t.notMatch(error.remedy, /\.$/, `${reason}: remedies are parts of sentences`);
	}
});

t.test("explain tells the chain of causes and the first remedy", async (t) => {
	const root = new Error("ENOENT: no such file");
	const vmm = new ShimError("vmm.missing", "starting /usr/bin/ch failed", { cause: root, remedy: "install it" });
	const outer = new ShimError("internal", "booting pod a failed", { cause: vmm, remedy: "outer remedy" });
	t.equal(explain(vmm), "starting /usr/bin/ch failed: ENOENT: no such file (install it)");
	t.equal(explain(outer), "booting pod a failed: starting /usr/bin/ch failed: ENOENT: no such file (outer remedy)");
	t.equal(explain(new Error("plain", { cause: vmm })), "plain: starting /usr/bin/ch failed: ENOENT: no such file (install it)");
});

t.test("explain says repeated texts once", async (t) => {
	t.equal(explain(new Error("a: b", { cause: new Error("b") })), "a: b");
});

t.test("explain ends on a chain without an end", async (t) => {
	const loop = new Error("loop 0");
	let link = loop;
	for (let depth = 1; depth < 20; depth++) {
		const next = new Error(`loop ${depth}`);
		link.cause = next;
		link = next;
	}
	link.cause = loop;
	t.equal(explain(loop).split(": ").length, 8);
});

t.test("explain follows the first of many errors", async (t) => {
	t.equal(explain(new AggregateError([new Error("one"), new Error("two")], "both")), "both: one");
});

t.test("messageOf and errnoOf take anything", async (t) => {
	t.equal(messageOf("text"), "text");
	t.equal(messageOf(new TypeError("")), "TypeError");
	t.equal(messageOf(undefined), "undefined");
	t.equal(errnoOf(Object.assign(new Error("x"), { code: "ENOENT" })), "ENOENT");
	t.equal(errnoOf(Object.assign(new Error("x"), { code: 2 })), undefined);
	t.equal(errnoOf("ENOENT"), undefined);
});

t.test("asShimError keeps a ShimError and wraps the rest", async (t) => {
	const known = new ShimError("pod.lost", "gone");
	t.equal(asShimError(known, "internal", "x"), known);
	const cause = new Error("raw");
	t.match(asShimError(cause, "vmm.api", "asking failed"), { reason: "vmm.api", code: "unavailable", message: "asking failed", cause });
});
