/** Processes by pidfd. */

import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { readdirSync, realpathSync } from "node:fs";
import { Worker } from "node:worker_threads";
import { t } from "tap";

import { ShimError } from "../../shim/base/errors.ts";
import { findProcesses, ProcessHandle, startTimeOf } from "../../shim/host/processes.ts";

// A watched process does not keep the program alive, and these tests wait for nothing else.
const alive = setInterval(() => undefined, 60_000);
t.teardown(() => clearInterval(alive));

t.test("ProcessHandle: sees the end of a process, whoever started it", async (t) => {
	const child = spawn("sh", ["-c", "sleep 1000 </dev/null >/dev/null 2>&1 & echo $!"], { stdio: ["ignore", "pipe", "ignore"] });
	const [text] = (await once(child.stdout.setEncoding("utf8"), "data")) as [string];
	const handle = ProcessHandle.open(Number(text));
	if (handle === undefined) throw new Error("the grandchild is not there");
	t.teardown(() => handle.close());
	t.ok(handle.alive());
	t.equal(handle.startTime, startTimeOf(handle.pid));
	t.equal(await handle.waitExit({ timeoutMs: 10 }).catch((error: unknown) => error instanceof ShimError && error.reason), "wait.deadline");
	t.ok(handle.kill("SIGTERM"));
	await handle.waitExit({ timeoutMs: 5000 });
	t.notOk(handle.alive());
	await handle.exited;
	t.equal(ProcessHandle.open(handle.pid, handle.startTime), undefined);
});

t.test("ProcessHandle: one that has ended before it is opened, one with another start time, none at all", async (t) => {
	const child = spawn("true");
	const pid = child.pid ?? 0;
	// Not waited for yet: the loop has not turned.
	const handle = ProcessHandle.open(pid);
	t.equal(ProcessHandle.open(pid, 1n), undefined);
	await handle?.waitExit({ timeoutMs: 5000 });
	t.equal(handle?.alive(), false);
	handle?.close();
	handle?.close();
	t.equal(handle?.kill("SIGTERM"), false, "closed");
	t.equal(ProcessHandle.open(2 ** 22 + 1), undefined, "beyond the largest pid");
	t.throws(() => ProcessHandle.open(-1), RangeError);
});

t.test("ProcessHandle: many at once, and a closed one is never told", async (t) => {
	const children = Array.from({ length: 20 }, () => spawn("sleep", ["1000"]));
	const handles = children.map((child) => ProcessHandle.open(child.pid ?? 0) as ProcessHandle);
	const [closed] = handles;
	closed?.close();
	for (const child of children) child.kill("SIGKILL");
	await Promise.all(handles.slice(1).map((handle) => handle.waitExit({ timeoutMs: 5000 })));
	t.ok(closed?.alive());
	for (const handle of handles) handle.close();
});

t.test("findProcesses: by folder and argument together", async (t) => {
	const folder = realpathSync(t.testdir());
	const start = (cwd: string, ...args: string[]): ChildProcess => {
		const child = spawn("sh", ["-c", "read line", ...args], { cwd });
		t.teardown(() => child.kill("SIGKILL"));
		return child;
	};
	const children = [start(folder, "--api-socket", "fd=3"), start("/", "--api-socket", folder), start(folder)];
	await Promise.all(children.map((child) => once(child, "spawn")));
	const pid = children[0]?.pid ?? 0;
	const args = ["sh", "-c", "read line", "--api-socket", "fd=3"];
	t.same(findProcesses(folder, "--api-socket"), [{ pid, startTime: startTimeOf(pid), args }]);
});

t.test("the addon in a worker that ends while it watches a process", async (t) => {
	const child = spawn("sleep", ["1000"]);
	t.teardown(() => child.kill("SIGKILL"));
	const file = new URL("../../build/Release/snp_native.node", import.meta.url).pathname;
	const script = `const native = require(${JSON.stringify(file)});
		const fd = native.pidfdOpen(${child.pid});
		for (let i = 0; i < 10; i++) native.pidfdWatch(fd, () => undefined);
		native.closeFd(fd);
		require("node:worker_threads").parentPort.postMessage("watching");`;
	const before = readdirSync("/proc/self/fd").length;
	const worker = new Worker(script, { eval: true });
	t.same(await once(worker, "message"), ["watching"]);
	await worker.terminate();
	const ending = new Worker(script, { eval: true });
	t.same(await once(ending, "exit"), [0], "watches do not keep a thread alive");
	t.ok(readdirSync("/proc/self/fd").length <= before, "and end with it");
});

t.test("the addon in a program that exits just when a watched process ends", async (t) => {
	const file = new URL("../../build/Release/snp_native.node", import.meta.url).pathname;
	const script = `const native = require(${JSON.stringify(file)});
		const { spawn } = require("node:child_process");
		const { readFileSync } = require("node:fs");
		const child = spawn("sleep", ["1000"], { stdio: "ignore" });
		native.pidfdWatch(native.pidfdOpen(child.pid), () => console.log("told"));
		child.unref();
		process.on("exit", () => {
			child.kill("SIGKILL");
			while (!readFileSync("/proc/" + child.pid + "/stat", "latin1").includes(") Z ")) {}
			process.exitCode = 7;
		});`;
	const program = spawn(process.execPath, ["-e", script], { stdio: ["ignore", "ignore", "inherit"] });
	t.same(await once(program, "exit"), [7, null]);
});

t.test("what the callback of a watch throws is an uncaught exception like any other", async (t) => {
	const file = new URL("../../build/Release/snp_native.node", import.meta.url).pathname;
	const script = `const native = require(${JSON.stringify(file)});
		const child = require("node:child_process").spawn("true");
		native.pidfdWatch(native.pidfdOpen(child.pid), () => { throw new Error("mine"); });
		process.on("uncaughtException", (error) => process.exit(error.message === "mine" ? 7 : 8));
		setInterval(() => undefined, 1000);`;
	const program = spawn(process.execPath, ["-e", script], { stdio: ["ignore", "ignore", "inherit"] });
	t.same(await once(program, "exit"), [7, null]);
});
