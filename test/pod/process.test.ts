import t from "tap";
import { GuestProcess } from "../../shim/pod/process.ts";
import type { ProcessState } from "../../shim/pod/process.ts";
import { failing } from "../base/failing.ts";

const stdio = { stdin: "", stdout: "", stderr: "", terminal: false };
const exit = { status: 42, atMs: 1000 };
const STATES: readonly ProcessState[] = [{ kind: "created" }, { kind: "starting" }, { kind: "running" }, { kind: "stopped", exit }];
const ALLOWED = new Set([
	"created>starting",
	"created>stopped",
	"starting>running",
	"starting>created",
	"starting>stopped",
	"running>stopped",
]);

t.test("a process changes only as its states allow, and names both states otherwise", (t) => {
	for (const from of STATES) {
		for (const to of STATES) {
			const process = new GuestProcess("c", "e", stdio);
			process.restore(from);
			if (ALLOWED.has(`${from.kind}>${to.kind}`)) {
				process.transition(to);
				t.equal(process.state.kind, to.kind);
			} else {
				t.throws(
					() => process.transition(to),
					failing({ reason: "process.state", message: new RegExp(`${from.kind}: it can't become ${to.kind}`) }),
				);
			}
		}
	}
	t.end();
});

t.test("the end of a process is told once it has stopped", async (t) => {
	const process = new GuestProcess("c", "", stdio);
	process.transition({ kind: "starting" });
	process.transition({ kind: "running" });
	t.equal(process.exit, undefined);
	process.transition({ kind: "stopped", exit });
	t.same(await process.exited, exit);
	t.same(process.exit, exit);
});

t.test("whenRunning acts at once, later, or never", (t) => {
	const seen: string[] = [];
	const process = new GuestProcess("c", "", stdio);
	process.whenRunning(() => seen.push("later"));
	t.same(seen, []);
	process.transition({ kind: "starting" });
	process.transition({ kind: "running" });
	process.whenRunning(() => seen.push("at once"));
	t.same(seen, ["later", "at once"]);
	const stillborn = new GuestProcess("c", "", stdio);
	stillborn.whenRunning(() => seen.push("never"));
	stillborn.transition({ kind: "stopped", exit });
	t.same(seen, ["later", "at once"]);
	t.end();
});
