import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { deferred } from "../../shim/base/deadline.ts";
import { Log } from "../../shim/base/log.ts";
import { defaultConfig } from "../../shim/config/schema.ts";
import { cgroupsApart, HostCgroup } from "../../shim/host/cgroups.ts";
import { setOomScore } from "../../shim/host/processes.ts";
import { Journal } from "../../shim/pod/journal.ts";
import type { Machine } from "../../shim/pod/machine.ts";
import { Sandbox } from "../../shim/pod/sandbox.ts";
import type { SandboxOwner } from "../../shim/pod/sandbox.ts";
import { Timeline } from "../../shim/pod/timeline.ts";

const lookAfter = () => () => undefined;
const vmm = { pid: 0, startTime: 0n, client: { info: () => Promise.reject(new Error("no hypervisor")) } };

t.test("an adopted sandbox keeps its journal until everything else is given back", async (t) => {
	const folder = join(t.testdir({}), "k");
	const journal = new Journal(folder);
	journal.open();
	const owner = {
		podId: "p",
		folder,
		journal,
		config: defaultConfig(),
		log: new Log(() => undefined, "error"),
		timeline: new Timeline(),
		saveQuietly: () => undefined,
		lookAfter,
	};
	const sandbox = new Sandbox(owner as unknown as SandboxOwner);
	const seen: string[] = [];
	const note = (what: string) => () => void seen.push(`${what} ${existsSync(folder) ? "with" : "without"} the journal`);
	// As `restorePod` does: containers and the network before the VM.
	sandbox.scope.child("container c").defer("image", note("image"));
	sandbox.scope.defer("network", note("network"));
	const agent = { oomEvent: () => Promise.reject(new Error("no guest")) };
	sandbox.adopt({ agent, vmm, details: { damage: false }, died: new Promise(() => undefined) } as unknown as Machine, note("VM"));
	sandbox.transition({ kind: "gone" });
	await sandbox.release();
	await sandbox.left;
	t.same(seen, ["VM with the journal", "image with the journal", "network with the journal"]);
	t.notOk(existsSync(folder));
});

t.test("a control group that processes are still leaving holds up nobody, and the journal stays until it is gone", async (t) => {
	const folder = join(t.testdir({}), "k");
	const journal = new Journal(folder);
	journal.open();
	const saved: string[] = [];
	const owner = {
		podId: "p",
		folder,
		journal,
		config: defaultConfig(),
		log: new Log(() => undefined, "error"),
		timeline: new Timeline(),
		saveQuietly: () => void saved.push(sandbox.state.kind),
		lookAfter,
	};
	const sandbox = new Sandbox(owner as unknown as SandboxOwner);
	const empty = deferred<void>();
	sandbox.cgroup = { path: "/p", removeEmpty: () => false, remove: () => empty.promise } as unknown as HostCgroup;
	const agent = { oomEvent: () => Promise.reject(new Error("no guest")) };
	sandbox.adopt({ agent, vmm, details: { damage: false }, died: new Promise(() => undefined) } as unknown as Machine, () => undefined);
	sandbox.transition({ kind: "gone" });
	await sandbox.release();
	t.strictSame(saved, ["gone"], "a new snpd finds it and goes on");
	t.ok(existsSync(folder));
	empty.resolve();
	await sandbox.left;
	t.notOk(existsSync(folder));
});

t.test("a VM of the pool that a killed snpd has not moved altogether is moved when its pod is taken up again", async (t) => {
	const name = `/snp-test-${randomBytes(4).toString("hex")}`;
	const [parent, pool, pod] = ["", "/pool", "/pod"].map((path) => new HostCgroup(`${name}${path}`));
	if (parent === undefined || pool === undefined || pod === undefined) return;
	const child = spawn("sleep", ["1000"]);
	const ended = once(child, "exit");
	t.teardown(async () => {
		child.kill("SIGKILL");
		await ended;
		for (const group of [pool, pod, parent]) await group.remove();
	});
	await pool.join(child.pid ?? 0);
	setOomScore(child.pid ?? 0, 1000);
	const left = deferred<void>();
	const owner = {
		podId: "p",
		config: defaultConfig(),
		log: new Log(() => undefined, "error"),
		timeline: new Timeline(),
		saveQuietly: () => left.resolve(),
		lookAfter,
	};
	const sandbox = new Sandbox(owner as unknown as SandboxOwner);
	sandbox.cgroup = pod;
	sandbox.poolCgroup = pool.path;
	const agent = { oomEvent: () => Promise.reject(new Error("no guest")) };
	sandbox.adopt({ agent, vmm, details: { damage: false }, died: new Promise(() => undefined) } as unknown as Machine, () => undefined);
	await left.promise;
	t.strictSame(cgroupsApart(child.pid ?? 0), [pod.path]);
	t.equal(readFileSync(`/proc/${child.pid}/oom_score_adj`, "utf8").trim(), "0", "and is not the first to be killed any more");
	t.equal(sandbox.poolCgroup, null);
	t.ok(pool.removeEmpty(), "its group in the pool is gone");
});
