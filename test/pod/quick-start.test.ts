/** A pod must not fail for a VM that was there to make it faster, and must not boot twice with something of it in the first VM. */
import t from "tap";
import { ShimError } from "../../shim/base/errors.ts";
import type { ErrorReason } from "../../shim/base/catalogue.ts";
import { Log } from "../../shim/base/log.ts";
import { quickly } from "../../shim/pod/quick-start.ts";

const failure = (reason: ErrorReason = "guest.unreachable"): ShimError => new ShimError(reason, "no answer");

/** What happened, in its order. */
function run(how: {
	readonly inside?: boolean;
	readonly error?: ShimError;
	readonly podsOwn?: boolean;
	readonly aborted?: boolean;
	readonly stays?: boolean;
}): { readonly seen: string[]; readonly outcome: Promise<string> } {
	const seen: string[] = [];
	const abort = new AbortController();
	const brought = how.podsOwn === true ? [Promise.reject(new Error("no image")), undefined] : [Promise.resolve(), undefined];
	const outcome = quickly(
		{
			what: "a VM",
			start: async (entered) => {
				if (how.inside === true) entered();
				if (how.aborted === true) abort.abort(new Error("given up"));
				await Promise.resolve();
				if (how.error !== undefined) throw how.error;
				return "quick";
			},
			failed: () => void seen.push("failed"),
			discard: async () => {
				seen.push("discard");
				await Promise.resolve();
				if (how.stays === true) throw new Error("it stays");
			},
			boot: () => {
				seen.push("boot");
				return Promise.resolve("sure");
			},
		},
		{ signal: abort.signal, log: new Log(() => undefined), brought },
	);
	return { seen, outcome };
}

t.test("what fails before anything of the pod is in the VM is ended, and the pod boots", async (t) => {
	const well = run({});
	t.equal(await well.outcome, "quick");
	t.strictSame(well.seen, []);
	const failed = run({ error: failure() });
	t.equal(await failed.outcome, "sure");
	t.strictSame(failed.seen, ["failed", "discard", "boot"]);
});

t.test("nothing is booted in place of a VM that has something of the pod, that stays, or that took all the time", async (t) => {
	for (const [name, how, expected] of [
		["inside", { inside: true }, ["failed"]],
		["the time is over", { error: failure("vmm.boot-timeout") }, ["failed"]],
		["it does not go", { stays: true }, ["failed", "discard"]],
	] as const) {
		const { seen, outcome } = run({ error: failure(), ...how });
		await t.rejects(outcome, { message: "no answer" }, name);
		t.strictSame(seen, expected, name);
	}
});

t.test("a pod that has failed itself, or is given up, says nothing of the VM", async (t) => {
	for (const how of [{ podsOwn: true }, { aborted: true }]) {
		const { seen, outcome } = run({ error: failure(), ...how });
		await t.rejects(outcome);
		t.strictSame(seen, []);
	}
});
