/** Programs that are started: what they have from this process, where they are, and how their end is told. */

import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { closeSync, existsSync, openSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Worker } from "node:worker_threads";

import { t } from "tap";
import type { Test } from "tap";

import { spawnProgram } from "../../native/src/spawn.ts";
import { cgroupsApart, HostCgroup, parseHierarchies } from "../../shim/host/cgroups.ts";
import { ProcessHandle } from "../../shim/host/processes.ts";
import { startProgram } from "../../shim/host/programs.ts";
import type { ProgramOptions, StartedProgram } from "../../shim/host/programs.ts";
import { eventually } from "../support/retry.ts";

// What is watched does not keep the program alive, and these tests wait for nothing else.
const alive = setInterval(() => undefined, 60_000);
t.teardown(() => clearInterval(alive));

const hierarchies = parseHierarchies(readFileSync("/proc/self/mountinfo", "utf8"));

/** Runs a script of the shell, whose output is the file `out` of its folder. */
async function run(t: Test, script: string, options: Partial<ProgramOptions> = {}): Promise<StartedProgram & { readonly folder: string }> {
	const folder = options.folder ?? t.testdir();
	const out = openSync(join(folder, "out"), "a");
	const usual = {
		program: "/bin/sh",
		args: ["-c", script],
		folder,
		descriptors: ["null", out, out] as const,
		cgroup: undefined,
		oomScore: 0,
	};
	const starting = startProgram({ ...usual, ...options });
	// The thread has its own by now.
	closeSync(out);
	const started = await starting;
	t.teardown(async () => {
		started.handle.kill("SIGKILL");
		await started.ended;
		started.handle.close();
	});
	return { ...started, folder };
}

const outputOf = (folder: string): string => readFileSync(join(folder, "out"), "utf8");

/** A group of this test, in which nobody is left at its end. */
function group(t: Test, mounted = hierarchies): HostCgroup {
	const made = new HostCgroup(`/snp-test-${randomBytes(4).toString("hex")}/pod`, mounted);
	t.teardown(async () => {
		await made.remove();
		await new HostCgroup(made.path.slice(0, -"/pod".length), mounted).remove();
	});
	return made;
}

t.test("an end is told: by code, by signal, with the handle closed", async (t) => {
	t.match(await (await run(t, "exit 3")).ended, { code: 3, signal: undefined });
	t.match(await (await run(t, "kill -USR1 $$")).ended, { code: undefined, signal: "SIGUSR1" });
	const closed = await run(t, "exec sleep 1000");
	t.ok(closed.handle.kill("SIGTERM"));
	closed.handle.close();
	t.match(await closed.ended, { code: undefined, signal: "SIGTERM" });
	t.notOk(existsSync(`/proc/${closed.handle.pid}`), "it was waited for");
});

t.test("the end of a traced program is told when its tracer has let it go", async (t) => {
	const { handle, ended } = await run(t, "exec sleep 1000");
	// PTRACE_SEIZE (ptrace(2)): the program runs on, and its end is the tracer's to see first.
	const script = `import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
sys.exit("ptrace") if libc.ptrace(0x4206, ${handle.pid}, None, None) != 0 else print("traced", flush=True)
sys.stdin.read()`;
	const tracer = spawn("python3", ["-c", script], { stdio: ["pipe", "pipe", "inherit"] });
	t.teardown(() => tracer.kill("SIGKILL"));
	t.match(String(await once(tracer.stdout, "data")), /traced/);
	// Any other signal would stop it.
	handle.kill("SIGKILL");
	await handle.exited;
	t.ok(existsSync(`/proc/${handle.pid}`), "it can't be waited for");
	tracer.stdin.end();
	t.match(await ended, { code: undefined, signal: "SIGKILL" });
	t.notOk(existsSync(`/proc/${handle.pid}`));
});

t.test("a child that can't be watched leaves nothing: no descriptor, no zombie", async (t) => {
	const request = { program: "/bin/sleep", args: ["1000"], folder: "/", descriptors: [-1], oomScore: 0, group: undefined };
	const { pid, pidfd } = await spawnProgram(request);
	closeSync(pidfd);
	// No process is behind it: it takes no watch and no signal.
	const wrong = openSync("/dev/null", "r");
	t.throws(() => ProcessHandle.ofChild({ pid, pidfd: wrong }), { code: "EPERM" }, "the watch's own failure is told");
	t.notOk(existsSync(`/proc/self/fd/${wrong}`));
	process.kill(pid, "SIGKILL");
	await eventually("the end of the child", 10_000, () => (existsSync(`/proc/${pid}`) ? undefined : true));
});

t.test("no signal is ignored or blocked, and only the given descriptors are open, whatever their numbers were", async (t) => {
	const folder = t.testdir();
	const [one = 0, two = 0, log = 0, mine = 0] = ["one", "two", "log", "mine"].map((name) => openSync(join(folder, name), "w"));
	t.teardown(() => [one, two, log, mine].forEach((fd) => closeSync(fd)));
	// Among them places of each other.
	const descriptors = ["null", log, log, two, one, "null"] as const;
	const script = "echo first >&4; echo second >&3; ls /proc/self/fd; grep Sig /proc/self/status";
	const started = await startProgram({ program: "/bin/sh", args: ["-c", script], folder, descriptors, cgroup: undefined, oomScore: 0 });
	t.match(await started.ended, { code: 0 });
	started.handle.close();
	t.equal(readFileSync(join(folder, "one"), "utf8"), "first\n");
	t.equal(readFileSync(join(folder, "two"), "utf8"), "second\n");
	const told = readFileSync(join(folder, "log"), "utf8");
	const there = told.split("\n");
	for (const fd of descriptors.keys()) t.ok(there.includes(String(fd)), `${fd} is open`);
	for (const fd of [one, two, log, mine].filter((number) => number > descriptors.length))
		t.notOk(there.includes(String(fd)), `${fd} is closed`);
	for (const what of ["SigBlk", "SigIgn"]) t.match(told, new RegExp(`${what}:\\t0+\\n`), what);
});

t.test("it is in its group, of every hierarchy, before its first instruction; without one it stays where its parent is", async (t) => {
	const own = await run(t, "exec sleep 1000");
	t.strictSame(cgroupsApart(own.handle.pid), []);
	const cgroup = group(t);
	const started = await run(t, "cat /proc/self/cgroup", { cgroup });
	t.match(await started.ended, { code: 0 });
	const lines = outputOf(started.folder).trim().split("\n");
	t.ok(lines.length > 0);
	for (const line of lines) t.ok(line.endsWith(`:${cgroup.path}`), line);
});

t.test("a group that can't be entered is named, and nothing runs", async (t) => {
	const folder = t.testdir({ one: {}, file: "" });
	const of = (version: 1 | 2, name: string) => new HostCgroup("/pod", [{ mountPoint: join(folder, name), version, controllers: [] }]);
	for (const version of [1, 2] as const) {
		const message = /one\/pod can't be used: ENOENT/;
		await t.rejects(
			run(t, "echo it runs", { folder, cgroup: of(version, "one") }),
			{ reason: "host.cgroup", message },
			`version ${version}`,
		);
		t.equal(outputOf(folder), "");
	}
	await t.rejects(run(t, "echo it runs", { folder, cgroup: of(1, "file") }), { reason: "host.cgroup", message: /ENOTDIR/ });
});

t.test("what can't be run is told, with the call that failed; no process and no descriptor is left", async (t) => {
	const folder = t.testdir({ text: "no program" });
	const start = (options: Partial<ProgramOptions>): Promise<unknown> =>
		startProgram({ program: "/bin/true", args: [], folder, descriptors: ["null"], cgroup: undefined, oomScore: 0, ...options });
	const descriptors = (): number => readdirSync("/proc/self/fd").length;
	const before = descriptors();
	await t.rejects(start({ program: join(folder, "none") }), { code: "ENOENT", syscall: "execve" });
	await t.rejects(start({ program: join(folder, "text") }), { code: "EACCES", syscall: "execve" });
	await t.rejects(start({ folder: join(folder, "none") }), { code: "ENOENT", syscall: "chdir" });
	await t.rejects(start({ descriptors: [2 ** 20] }), { code: "EBADF", syscall: "descriptors" });
	await t.rejects(start({ args: ["a\0b"] }), TypeError);
	t.equal(descriptors(), before);
	t.notMatch(readFileSync(`/proc/self/task/${process.pid}/children`, "utf8"), /\d/, "no child is left");
});

t.test("how readily it is ended is set, and what may not be lowered is left", async (t) => {
	const started = await run(t, "cat /proc/self/oom_score_adj", { oomScore: 700 });
	await started.ended;
	t.equal(outputOf(started.folder), "700\n");
	t.equal(readFileSync("/proc/self/oom_score_adj", "utf8"), "0\n", "this process is as it was");
});

t.test("many at once, while this process allocates", async (t) => {
	const cgroup = group(t);
	const folder = t.testdir();
	const started = await Promise.all(Array.from({ length: 20 }, (_, index) => run(t, `exit ${index}`, { cgroup, folder })));
	const ends = await Promise.all(started.map(({ ended }) => ended));
	t.strictSame(
		ends.map(({ code }) => code),
		started.map((_, index) => index),
	);
});

t.test("an environment that ends while a program is being started leaves this process whole", async (t) => {
	const addon = new URL("../../build/Release/snp_native.node", import.meta.url).pathname;
	const script = `const native = require(${JSON.stringify(addon)});
		for (let i = 0; i < 5; i++) void native.spawn("/bin/true", ["true"], "/", [-1], 0, [], [], [], "");
		process.exit(0);`;
	for (let round = 0; round < 5; round++) t.same(await once(new Worker(script, { eval: true }), "exit"), [0]);
});
