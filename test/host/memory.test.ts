/** Memory of processes, groups and the node, as the addon samples it. */

import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";

import t from "tap";
import type { Test } from "tap";

import { memorySample, memoryUnwatch, memoryWatch, memoryWatchGroup } from "../../native/src/memory.ts";
import { pressureWatch } from "../../native/src/pressure.ts";
import { mountedHierarchies } from "../../shim/host/cgroups.ts";
import { limitedGroups, onPressure, sampleMemory, unwatch, watchGroup, watchProcess } from "../../shim/host/memory.ts";
import { startTimeOf } from "../../shim/host/processes.ts";
import { eventually } from "../support/retry.ts";

const MIB = 1024 * 1024;
const ADDON = new URL("../../build/Release/snp_native.node", import.meta.url).pathname;
const hierarchies = mountedHierarchies();
const counting =
	hierarchies.find(({ version, controllers }) => version === 1 && controllers.includes("memory")) ??
	hierarchies.find(({ version }) => version === 2);

/** A process that holds memory and says when it has it. */
async function holder(t: Test, mib: number): Promise<ChildProcess & { readonly pid: number }> {
	const script = `const held = Buffer.alloc(${mib * MIB}, 1); console.log(held.length); setInterval(() => held, 1e6);`;
	const child = spawn(process.execPath, ["-e", script], { stdio: ["ignore", "pipe", "inherit"] });
	t.teardown(() => child.kill("SIGKILL"));
	await once(child.stdout, "data");
	return child as ChildProcess & { readonly pid: number };
}

function watched(t: Test, pid: number) {
	const watch = watchProcess(pid, startTimeOf(pid) ?? 0n);
	if (watch === undefined) throw new Error(`process ${pid} is not there`);
	t.teardown(() => unwatch(watch));
	return watch;
}

t.test("a process's memory is what it holds, and what it gives back is gone from it", async (t) => {
	const small = watched(t, (await holder(t, 1)).pid);
	const large = watched(t, (await holder(t, 101)).pid);
	const sample = await sampleMemory({ share: true, time: true });
	const [one, other] = [sample.process(small), sample.process(large)];
	const more = (other?.residentBytes ?? 0) - (one?.residentBytes ?? 0);
	t.ok(Math.abs(more - 100 * MIB) < 20 * MIB, `${more}`);
	t.ok((other?.shareBytes ?? 0) > 100 * MIB && (other?.shareBytes ?? 0) <= (other?.residentBytes ?? 0) + MIB);
	t.ok((other?.peakBytes ?? 0) >= (other?.shareBytes ?? 0));
	t.ok((one?.cpuMs ?? 0) > 0);
	t.ok(sample.node.availableBytes > 0 && sample.node.availableBytes <= sample.node.totalBytes);
	const cheap = (await sampleMemory()).process(large);
	t.match(cheap, { shareBytes: undefined, peakBytes: undefined, cpuMs: undefined });
});

t.test("a process counts with those that it has started", async (t) => {
	const child = spawn(
		"sh",
		[
			"-c",
			`${process.execPath} -e 'const held = Buffer.alloc(64 * ${MIB}, 1); console.log(1); setInterval(() => held, 1e6)' & echo $!; wait`,
		],
		{
			stdio: ["ignore", "pipe", "inherit"],
			detached: true,
		},
	);
	t.teardown(() => process.kill(-(child.pid ?? 0), "SIGKILL"));
	let said = "";
	for await (const text of child.stdout) if ((said += String(text)).split("\n").length > 2) break;
	const watch = watched(t, child.pid ?? 0);
	t.ok(((await sampleMemory()).process(watch)?.residentBytes ?? 0) > 64 * MIB);
});

t.test("one that has ended is gone, waited for or not; another start time is another process", async (t) => {
	const child = await holder(t, 1);
	t.equal(watchProcess(child.pid, 1n), undefined);
	const watch = watched(t, child.pid);
	const id = watch.ids[0] ?? 0;
	child.kill("SIGKILL");
	// Its parent has not waited for it yet: the loop has not turned.
	while (!readFileSync(`/proc/${child.pid}/stat`, "utf8").includes(") Z"));
	const sampled = memorySample({ share: true, time: true });
	await once(child, "exit");
	const raw = await sampled;
	const row = raw.processRow(id) ?? -1;
	t.ok(row >= 0);
	t.strictSame([raw.process("residentBytes", row), raw.process("ticks", row)], [NaN, NaN]);
	t.equal((await sampleMemory()).process(watch), undefined);
	t.throws(() => memoryWatch(child.pid), { code: "ENOENT" });
	for (const wrong of [0, -1, 1.5, NaN]) t.throws(() => memoryWatch(wrong), RangeError);
});

t.test("watches may end during a sample, and a worker may end with one under way", async (t) => {
	const ids = Array.from({ length: 200 }, () => memoryWatch(process.pid));
	const sampled = memorySample({ share: true });
	for (const id of ids) memoryUnwatch(id);
	const raw = await sampled;
	t.strictSame(
		ids.map((_, row) => raw.process("id", row)),
		ids,
	);
	t.notOk(ids.some((_, row) => Number.isNaN(raw.process("residentBytes", row))));
	t.equal((await memorySample()).processes, 0);
	const before = readdirSync("/proc/self/fd").length;
	const script = `const native = require(${JSON.stringify(ADDON)});
		for (let i = 0; i < 100; i++) native.memoryWatch(process.pid);
		native.pressureWatch("/proc/pressure/memory", "some 200000 2000000", () => undefined);
		native.memorySample(3);
		process.exit(3);`;
	t.strictSame(await once(new Worker(script, { eval: true }), "exit"), [3]);
	// The thread of the sample ends by itself; its files go with it.
	while (readdirSync("/proc/self/fd").length > before) await memorySample();
	t.pass("nothing stays open");
});

t.test("one thread takes all samples, and ends with its environment", async (t) => {
	await memorySample();
	const threads = (): string[] => readdirSync("/proc/self/task");
	const before = threads();
	for (let i = 0; i < 50; i++) await memorySample();
	t.strictSame(threads(), before);
	const script = `const native = require(${JSON.stringify(ADDON)});
		native.memoryWatch(process.pid);
		const sample = () => native.memorySample(0);
		sample().then(sample).then(() => process.exit(4));`;
	t.strictSame(await once(new Worker(script, { eval: true }), "exit"), [4]);
	t.strictSame(threads(), before);
});

t.test("a control group: its use, its limit, and the groups above a group that have one", async (t) => {
	if (counting === undefined) throw new Error("no hierarchy of control groups counts memory");
	const path = `/snp-test-${randomBytes(4).toString("hex")}`;
	const folder = join(counting.mountPoint, path);
	mkdirSync(join(folder, "inner"), { recursive: true });
	t.teardown(() => {
		rmdirSync(join(folder, "inner"));
		rmdirSync(folder);
	});
	t.strictSame(limitedGroups(`${path}/inner`, hierarchies), []);
	writeFileSync(join(folder, counting.version === 1 ? "memory.limit_in_bytes" : "memory.max"), String(512 * MIB));
	t.strictSame(limitedGroups(`${path}/inner`, hierarchies), [path]);
	const [limited, endless] = [watchGroup(path, hierarchies), watchGroup(`${path}/inner`, hierarchies)];
	t.teardown(() => [limited, endless].forEach(unwatch));
	const before = (await sampleMemory()).group(limited);
	t.match(before, { totalBytes: 512 * MIB });
	t.equal((await sampleMemory()).group(endless), undefined, "without a limit it is no place that can be short");
	const script = `let held; process.stdin.once("data", () => (held = Buffer.alloc(64 * ${MIB}, 1))); console.log(held); setInterval(() => held, 1e6)`;
	const child = spawn(process.execPath, ["-e", script], { stdio: ["pipe", "pipe", "inherit"] });
	const ended = once(child, "exit");
	await once(child.stdout, "data");
	writeFileSync(join(folder, "inner", "cgroup.procs"), String(child.pid));
	child.stdin.write("\n");
	let used = 0;
	while (used < 64 * MIB) used = 512 * MIB - ((await sampleMemory()).group(limited)?.availableBytes ?? 0);
	t.ok(used < 128 * MIB, `${used}`);
	child.kill("SIGKILL");
	await ended;
	const gone = memoryWatchGroup({ usage: "/nonexistent/a", limit: "", stat: "", pressure: "" });
	t.teardown(() => memoryUnwatch(gone));
	t.equal((await sampleMemory()).group({ ids: [gone] }), undefined);
	t.throws(() => memoryWatchGroup({ usage: "a\0b", limit: "", stat: "", pressure: "" }), TypeError);
});

/** What the kernel takes of anybody. */
const WINDOW_US = 2_000_000;

t.test("pressure: the kernel tells of tasks that wait for memory", async (t) => {
	if (!existsSync("/proc/pressure/memory")) {
		t.equal(
			onPressure(100, 1000, () => undefined),
			undefined,
			"a kernel without pressure information tells nothing",
		);
		return;
	}
	t.throws(() => pressureWatch("/proc/pressure/memory", 0, WINDOW_US, () => undefined), RangeError);
	t.throws(() => pressureWatch("/proc/pressure/memory", 1, 1000, () => undefined), RangeError);
	t.throws(() => pressureWatch("/proc/self/status", 1, WINDOW_US, () => undefined), /EACCES|EINVAL|EPERM|EIO/u);
	if (counting === undefined) throw new Error("no hierarchy of control groups counts memory");
	// A process that writes and reads more than its group may hold waits for room.
	const folder = join(counting.mountPoint, `snp-test-${randomBytes(4).toString("hex")}`);
	mkdirSync(folder);
	t.teardown(() => eventually("the end of the group", 5_000, async () => (rmdirSync(folder), true)));
	const files = mkdtempSync(join(tmpdir(), "snp-pressure-"));
	t.teardown(() => rmSync(files, { recursive: true }));
	const file = join(files, "much");
	writeFileSync(join(folder, counting.version === 1 ? "memory.limit_in_bytes" : "memory.max"), String(8 * MIB));
	const alive = setInterval(() => undefined, 60_000);
	t.teardown(() => clearInterval(alive));
	const told = new Promise<void>((resolve) => {
		const end = pressureWatch("/proc/pressure/memory", 1, WINDOW_US, () => {
			end();
			end();
			resolve();
		});
	});
	const work = `while :; do dd if=/dev/zero of=${file} bs=1M count=64 status=none; cat ${file} > /dev/null; done`;
	const child = spawn("sh", ["-c", `echo $$ > ${folder}/cgroup.procs; ${work}`], { stdio: "ignore", detached: true });
	const ended = once(child, "exit");
	t.teardown(async () => {
		process.kill(-(child.pid ?? 0), "SIGKILL");
		await ended;
	});
	await told;
	clearInterval(alive);
	t.pass("told");
});
