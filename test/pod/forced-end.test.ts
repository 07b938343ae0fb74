import t from "tap";
import { deferred, withDeadline } from "../../shim/base/deadline.ts";
import { ShimError } from "../../shim/base/errors.ts";
import { Log } from "../../shim/base/log.ts";
import { killForSure } from "../../shim/pod/forced-end.ts";
import { GuestProcess } from "../../shim/pod/process.ts";
import { failing } from "../base/failing.ts";

const WAIT_MS = 30_000;
const stdio = { stdin: "", stdout: "", stderr: "", terminal: false };

/** A container that runs, what is done to its VM, and the lines that are logged. */
function running() {
	const process = new GuestProcess("c", "", stdio);
	process.restore({ kind: "running" });
	const ended = deferred<undefined>();
	const lines: string[] = [];
	const log = new Log((line) => lines.push(line), "debug");
	const state = { vmEnds: 0 };
	const endVm = async (): Promise<void> => {
		state.vmEnds += 1;
		ended.resolve(undefined);
	};
	return { process, ended: ended.promise, state, lines, options: { process, endVm, endMs: 5, log } };
}

t.test("a guest that does not answer loses its VM, and the caller's wish is fulfilled", async (t) => {
	const { options, state, lines } = running();
	await killForSure({ ...options, signal: () => Promise.reject(new ShimError("wait.deadline", "no answer")) });
	t.equal(state.vmEnds, 1);
	t.match(lines.join(""), /container c/);
});

t.test("what the guest says against it is the caller's to hear, and the VM stays", async (t) => {
	const { options, state } = running();
	const signal = (): Promise<void> => Promise.reject(new ShimError("guest.call", "no such signal"));
	await t.rejects(killForSure({ ...options, signal }), failing({ reason: "guest.call", message: /no such signal/ }));
	t.equal(state.vmEnds, 0);
});

t.test("a container that outlasts its SIGKILL loses its VM; one whose end is known, or that has ended, does not", async (t) => {
	const [known, over, stuck] = [running(), running(), running()];
	const signal = (): Promise<void> => Promise.resolve();
	known.process.endKnown = true;
	await killForSure({ ...known.options, endMs: 1, signal });
	await killForSure({ ...over.options, endMs: 1, signal });
	over.process.endKnown = true;
	over.process.transition({ kind: "stopped", exit: { status: 137, atMs: 1 } });
	await killForSure({ ...stuck.options, signal });
	// The wait keeps no process alive: in snpd others do.
	await withDeadline({ what: "the VM's end", timeoutMs: WAIT_MS }, () => stuck.ended);
	t.strictSame([known.state.vmEnds, over.state.vmEnds, stuck.state.vmEnds], [0, 0, 1]);
	t.match(stuck.lines.join(""), /outlasts SIGKILL/);
});
