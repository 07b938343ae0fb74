/** Launching programs that behave badly in the VMM's place: small real processes, since only faults are of interest here. */

import { chmodSync, closeSync, existsSync, openSync, readFileSync, readdirSync, statSync, writeFileSync, writeSync } from "node:fs";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { t } from "tap";
import type { Test } from "tap";

import { deferred } from "../../shim/base/deadline.ts";
import { findProcesses, ProcessHandle } from "../../shim/host/processes.ts";
import { adoptVmm, launchVmm, vmmFiles } from "../../shim/vmm/launcher.ts";
import type { Vmm, VmmEvent } from "../../shim/vmm/launcher.ts";
import { boundLog, cutLog, MAX_LOG_BYTES } from "../../shim/vmm/vmm-log.ts";
import { failure, shortFolder } from "./tools.ts";

// A VMM does not keep its owner's program alive, and these tests wait for nothing else.
const alive = setInterval(() => undefined, 60_000);
t.teardown(() => clearInterval(alive));

interface Place {
	readonly folder: string;
	readonly program: string;
}

/** A folder with a program in it. */
function place(t: Test, script: string): Place {
	const folder = shortFolder(t);
	const program = join(folder, "program");
	writeFileSync(program, `#!/bin/sh\n${script}\n`);
	chmodSync(program, 0o755);
	return { folder, program };
}

async function launch(t: Test, { folder, program }: Place, onEvent?: (event: VmmEvent) => void): Promise<Vmm> {
	const vmm = await launchVmm({ hypervisorPath: program, folder, onEvent });
	t.teardown(() => vmm.kill());
	return vmm;
}

const EVENT = (name: string): string => `printf '{\\n  "source": "vmm",\\n  "event": "${name}"\\n}\\n\\n' >&4`;
/** Nobody writes to the FIFO. */
const HANGS = "mkfifo never; read line <never";
const descriptors = (): number => readdirSync("/proc/self/fd").length;

t.test("a program that is missing, no program, or not executable is named with the key that sets it", async (t) => {
	const { folder, program } = place(t, "exit 0");
	const launchAt = (hypervisorPath: string): Promise<unknown> => launchVmm({ hypervisorPath, folder });
	t.match(await failure(launchAt(`${program}.no`)), { reason: "vmm.missing", message: /does not exist$/, remedy: /hypervisor\.path/ });
	t.match(await failure(launchAt(folder)), { reason: "vmm.missing", message: /is not a file$/ });
	t.match(await failure(launchAt("program")), { reason: "vmm.missing", message: /is not absolute$/ });
	chmodSync(program, 0o644);
	t.match(await failure(launchAt(program)), { reason: "vmm.missing", message: /is not executable$/ });
});

t.test("a launch that fails or is canceled leaves no descriptor and no file but the log", async (t) => {
	const { folder, program } = place(t, "exit 0");
	writeFileSync(program, "#!/no/such/interpreter\n");
	// The first watch of a file makes the loop's inotify descriptor, which stays.
	await failure(launchVmm({ hypervisorPath: program, folder }));
	const before = descriptors();
	t.match(await failure(launchVmm({ hypervisorPath: program, folder })), { reason: "vmm.launch", message: /ENOENT/ });
	const long = join(folder, "x".repeat(100));
	t.match(await failure(launchVmm({ hypervisorPath: program, folder: long })), { reason: "vmm.launch", message: /longer than 107 bytes/ });
	t.match(await failure(launchVmm({ hypervisorPath: program, folder: `${folder}/no` })), { reason: "vmm.launch", message: /ENOENT/ });
	t.equal((await failure(launchVmm({ hypervisorPath: program, folder, signal: AbortSignal.abort() }))).reason, "wait.canceled");
	await new Promise((resolve) => setImmediate(resolve));
	t.equal(descriptors(), before);
	t.same(
		readdirSync(folder).filter((name) => !["program", "vmm.log"].includes(name)),
		[],
	);
});

t.test("the program gets its arguments, an empty environment, its folder, a session of its own, and only its descriptors", async (t) => {
	const { folder, program } = place(t, 'echo "$@"; pwd; cat /proc/self/stat >stat; env >env; ls -l /proc/self/fd >fds');
	process.env["SNP_CANARY"] = "leaked";
	t.teardown(() => delete process.env["SNP_CANARY"]);
	const vmm = await launchVmm({ hypervisorPath: program, folder, logLevel: "debug", seccomp: "log" });
	t.match(await vmm.exited, { code: 0, signal: undefined, text: "ended with exit code 0" });
	t.equal(await vmm.logTail(), `--api-socket fd=3 --event-monitor fd=4 -vv --seccomp log\n${folder}`);
	const [, , , group, session] = readFileSync(join(folder, "stat"), "utf8").split(" ");
	t.same([group, session], [String(vmm.pid), String(vmm.pid)]);
	t.notMatch(readFileSync(join(folder, "env"), "utf8"), /SNP_CANARY|HOME/);
	const fds = readFileSync(join(folder, "fds"), "utf8");
	t.match(fds, / 3 -> socket:/);
	t.match(fds, / 4 -> .*\/events\n/);
	t.equal(fds.match(/socket:|anon_inode:/g)?.length, 1, "no other socket, no pidfd, no poll");
	t.equal(statSync(vmmFiles(folder).apiSocket).mode & 0o777, 0o600);
});

t.test("a program that ends at once: the first call says how, with the end of its log", async (t) => {
	const at = place(t, "echo 'Error: no such argument' >&2; exit 2");
	const vmm = await launch(t, at);
	const error = await failure(vmm.client.ping());
	t.equal(error.reason, "vmm.exited");
	t.match(
		error.message,
		/^the hypervisor \(process \d+\) ended with exit code 2 and did not answer vmm\.ping; the end of its log: Error: no such argument$/,
	);
	t.match(error.remedy, /hypervisor\.path.*--version/);
	t.match(await vmm.kill(), { code: 2 }, "killing it again is harmless");
});

t.test("a program that ends after it has answered is the right one: the remedy is another", async (t) => {
	const server = `require("net").createServer((socket) => {
		socket.once("data", () => {
			socket.once("data", () => process.exit(3));
			socket.write("HTTP/1.1 200 \\r\\nContent-Length: 2\\r\\n\\r\\n{}");
		});
	}).listen({ fd: 3 });`;
	const vmm = await launch(t, place(t, `exec ${process.execPath} -e '${server}'`));
	await vmm.client.ping();
	const error = await failure(vmm.client.ping());
	t.match(error, { reason: "vmm.exited", message: /ended with exit code 3 and did not answer vmm\.ping/ });
	t.notMatch(error.remedy, /hypervisor\.path/);
});

t.test("a program that is killed while a call waits", async (t) => {
	const vmm = await launch(t, place(t, HANGS));
	const call = failure(vmm.client.boot());
	t.match(await vmm.kill(), { code: undefined, signal: "SIGKILL", text: "was killed by SIGKILL" });
	t.match(await call, { reason: "vmm.exited", message: /was killed by SIGKILL.*its log is empty/ });
});

t.test("a program that never answers: the call's own deadline", async (t) => {
	const vmm = await launch(t, place(t, HANGS));
	t.match(await failure(vmm.client.ping({ timeoutMs: 50 })), { reason: "wait.deadline", message: /^vmm\.ping of the hypervisor/ });
	t.ok(existsSync(`/proc/${vmm.pid}`), "it is left to its owner");
});

t.test("nothing is left open after the end", async (t) => {
	const at = place(t, "exit 0");
	const counts: number[] = [];
	for (let round = 0; round < 4; round++) {
		await (await launchVmm({ hypervisorPath: at.program, folder: at.folder })).exited;
		// Handles are closed at the end of a turn of the loop, files by another thread.
		for (let turn = 0; turn < 100; turn++) await new Promise((resolve) => setImmediate(resolve));
		counts.push(descriptors());
	}
	t.ok((counts[3] ?? 0) <= (counts[0] ?? 0), counts.join(" "));
});

t.test("an adopted VMM: unread events, later events, its end", async (t) => {
	const at = place(t, `${EVENT("one")}; read line <go; ${EVENT("two")}; read line <go; ${EVENT("three")}; read line <go; exit 3`);
	const go = join(at.folder, "go");
	t.equal((await once(spawn("mkfifo", [go]), "exit"))[0], 0);
	// Open for both, so that neither side waits for the other.
	const tell = openSync(go, "r+");
	t.teardown(() => closeSync(tell));
	const events = new Map(["one", "two", "three"].map((name) => [name, deferred<string>()]));
	const on = (who: string) => (event: VmmEvent) => events.get(event.event)?.resolve(who);
	const first = await launch(t, at, on("first"));
	t.equal(await events.get("one")?.promise, "first");
	first.detach();

	writeSync(tell, "\n");
	t.equal(
		adoptVmm({ pid: first.pid, startTime: first.startTime + 1n, folder: at.folder }),
		undefined,
		"another process with the same number",
	);
	const second = adoptVmm({ pid: first.pid, startTime: first.startTime, folder: at.folder, onEvent: on("second") });
	if (second === undefined) throw new Error("not adopted");
	t.equal(await events.get("two")?.promise, "second");
	writeSync(tell, "\n");
	t.equal(await events.get("three")?.promise, "second");
	t.same(
		findProcesses(at.folder, "--api-socket").map(({ pid, startTime }) => [pid, startTime]),
		[[first.pid, first.startTime]],
	);
	writeSync(tell, "\n");
	t.match(await second.exited, { code: undefined, text: "ended" });
	t.match(await first.exited, { code: 3 });
	t.equal(adoptVmm({ pid: first.pid, startTime: first.startTime, folder: at.folder }), undefined, "it is gone");
});

t.test("a VMM survives the kill of the process that started it, keeps its events for the next one, and can be killed by it", async (t) => {
	const at = place(t, `${EVENT("before")}; read line <go; ${EVENT("alone")}; echo alone >>done; ${HANGS}`);
	const go = join(at.folder, "go");
	t.equal((await once(spawn("mkfifo", [go, join(at.folder, "done")]), "exit"))[0], 0);
	const starter = join(at.folder, "starter.mts");
	writeFileSync(
		starter,
		`import { launchVmm } from ${JSON.stringify(new URL("../../shim/vmm/launcher.ts", import.meta.url).pathname)};
		const tell = ({ event }) => void launched.then((vmm) => console.log(event + " " + vmm.pid + " " + vmm.startTime));
		const launched = launchVmm({ hypervisorPath: ${JSON.stringify(at.program)}, folder: ${JSON.stringify(at.folder)}, onEvent: tell });
		setInterval(() => undefined, 1000);`,
	);
	const parent = spawn(process.execPath, ["--import=tsx", starter], { stdio: ["ignore", "pipe", "inherit"] });
	const [line] = (await once(parent.stdout.setEncoding("utf8"), "data")) as [string];
	const [event, pid, startTime] = line.trim().split(" ");
	t.equal(event, "before");
	parent.kill("SIGKILL");
	await once(parent, "exit");

	const tell = openSync(go, "r+");
	t.teardown(() => closeSync(tell));
	writeSync(tell, "\n");
	t.equal(await readLine(join(at.folder, "done")), "alone\n", "writing an event with nobody there was no error");
	const seen = deferred<string>();
	const vmm = adoptVmm({
		pid: Number(pid),
		startTime: BigInt(startTime ?? 0),
		folder: at.folder,
		onEvent: ({ event }) => seen.resolve(event),
	});
	if (vmm === undefined) throw new Error("not adopted");
	t.equal(await seen.promise, "alone");
	t.match(await vmm.kill(), { text: "ended" });
	t.equal(ProcessHandle.open(Number(pid), BigInt(startTime ?? 0)), undefined, "also while nobody has waited for it");
});

async function readLine(fifo: string): Promise<string> {
	const cat = spawn("head", ["-n", "1", fifo], { stdio: ["ignore", "pipe", "inherit"] });
	const [text] = (await once(cat.stdout.setEncoding("utf8"), "data")) as [string];
	return text;
}

t.test("the log stays small, and its end is kept", async (t) => {
	const log = join(shortFolder(t), "vmm.log");
	writeFileSync(log, `${"x".repeat(MAX_LOG_BYTES)}the end`);
	await cutLog(log);
	t.ok(statSync(log).size < MAX_LOG_BYTES / 2);
	t.match(readFileSync(log, "utf8"), /the end$/);

	const cut = deferred<void>();
	const stop = boundLog(log);
	const writer = openSync(log, "a");
	const writing = setInterval(() => {
		writeSync(writer, `${"y".repeat(MAX_LOG_BYTES / 4)}\n`);
		if (statSync(log).size < MAX_LOG_BYTES / 2) cut.resolve();
	}, 5);
	// It was cut once: after more than the bound was written it is small again.
	for (let i = 0; i < 5; i++) writeSync(writer, `${"z".repeat(MAX_LOG_BYTES / 4)}\n`);
	await cut.promise;
	clearInterval(writing);
	stop();
	closeSync(writer);
});

t.test("a handle of a process that is gone", async (t) => {
	const child = spawn("true");
	await once(child, "exit");
	t.equal(ProcessHandle.open(child.pid ?? 0), undefined);
});
