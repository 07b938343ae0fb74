/** Control groups of both versions. */
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

import t from "tap";

import { cgroupPath, cgroupsApart, HostCgroup, parseHierarchies } from "../../shim/host/cgroups.ts";

t.test("cgroupPath: a path, systemd's form, and what is neither", async (t) => {
	t.equal(cgroupPath("/kubepods/burstable/pod1/abc"), "/kubepods/burstable/pod1/abc");
	t.equal(cgroupPath("relative/abc"), "/relative/abc");
	t.equal(
		cgroupPath("kubepods-burstable-pod1.slice:cri-containerd:abc"),
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope",
	);
	t.equal(cgroupPath(":cri-containerd:abc"), "/system.slice/cri-containerd-abc.scope");
	t.equal(cgroupPath("-.slice:x:abc"), "/x-abc.scope");
	for (const wrong of ["", "/", "/a/../../b", ".."])
		t.throws(() => cgroupPath(wrong), { reason: "spec.invalid", message: /control group/ }, JSON.stringify(wrong));
});

t.test("parseHierarchies: both versions", async (t) => {
	const text = [
		"30 23 0:25 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory",
		"31 23 0:26 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw",
		"32 23 0:27 / /proc rw - proc proc rw",
		"",
	].join("\n");
	t.strictSame(parseHierarchies(text), [
		{ mountPoint: "/sys/fs/cgroup/memory", version: 1, controllers: ["rw", "memory"] },
		{ mountPoint: "/sys/fs/cgroup/unified", version: 2, controllers: ["rw"] },
	]);
});

t.test("HostCgroup: a process joins with all hierarchies; the group goes when it is empty", async (t) => {
	const hierarchies = parseHierarchies(readFileSync("/proc/self/mountinfo", "utf8"));
	const group = new HostCgroup(`/snp-test-${randomBytes(4).toString("hex")}`);
	const folders = hierarchies.map(({ mountPoint }) => join(mountPoint, group.path));
	const child = spawn("sleep", ["1000"]);
	const ended = once(child, "exit");
	t.teardown(async () => {
		child.kill("SIGKILL");
		await ended;
		await group.remove();
	});
	t.strictSame(cgroupsApart(child.pid ?? 0), [], "as its parent");
	await group.join(child.pid ?? 0);
	await group.join(child.pid ?? 0);
	t.strictSame(cgroupsApart(child.pid ?? 0), [group.path]);
	t.notOk(group.removeEmpty(), "somebody is in it");
	for (const folder of folders) t.match(readFileSync(join(folder, "cgroup.procs"), "utf8"), new RegExp(`^${child.pid}$`, "m"), folder);
	child.kill("SIGKILL");
	await ended;
	t.strictSame(cgroupsApart(child.pid ?? 0), []);
	t.ok(group.removeEmpty());
	t.ok(group.removeEmpty());
	await group.remove();
	t.strictSame(folders.filter(existsSync), []);
});

t.test(
	"HostCgroup.join: a failure names the folder; what is handed down is what the kernel has and nobody has handed down yet",
	async (t) => {
		const folder = t.testdir({
			one: { file: "" },
			two: { "cgroup.controllers": "cpu memory misc\n", "cgroup.subtree_control": "cpu\n" },
		});
		const of = (path: string, name: string, version: 1 | 2) =>
			new HostCgroup(path, [{ mountPoint: join(folder, name), version, controllers: [] }]).join(process.pid);
		await t.rejects(of("/file/pod", "one", 1), { reason: "host.cgroup", message: /one\/file\/pod can't be used: ENOTDIR/ });
		// A folder that is no control group has no such file.
		await t.rejects(of("/pods/pod", "two", 2), { reason: "host.cgroup", message: /two\/pods\/pod can't be used: ENOENT/ });
		t.ok(existsSync(join(folder, "two/pods/pod")), "with all above it");
		t.equal(readFileSync(join(folder, "two/cgroup.subtree_control"), "utf8"), "+memory");
	},
);

t.test("HostCgroup.join: a process that is gone joins nothing", async () => {
	const child = spawn("true");
	await once(child, "exit");
	const group = new HostCgroup(`/snp-test-${randomBytes(4).toString("hex")}`);
	await group.join(child.pid ?? 0);
	await group.remove();
});

t.test("HostCgroup: all processes of another group move, with those that they start, and a bound is set where there is one", async (t) => {
	const name = `/snp-test-${randomBytes(4).toString("hex")}`;
	const [parent, from, to] = ["", "/from", "/to"].map((path) => new HostCgroup(`${name}${path}`));
	if (parent === undefined || from === undefined || to === undefined) return;
	const child = spawn("sh", ["-c", "sleep 1000 & sleep 1000 & wait"], { detached: true });
	const ended = once(child, "exit");
	t.teardown(async () => {
		process.kill(-(child.pid ?? 0), "SIGKILL");
		await ended;
		for (const group of [from, to, parent]) await group.remove();
	});
	await from.join(child.pid ?? 0);
	const bytes = String(64 << 20);
	t.ok(from.set("memory.max", bytes) || from.set("memory.limit_in_bytes", bytes));
	t.equal(from.usage().memoryLimitBytes, 64 << 20);
	t.notOk(from.set("memory.nothing", bytes), "no hierarchy has it");
	t.ok((await to.takeFrom(from)).includes(child.pid ?? 0));
	t.strictSame(from.processes(), []);
	t.strictSame(cgroupsApart(child.pid ?? 0), [to.path]);
	t.ok(from.removeEmpty(), "nobody is left there");
	t.strictSame(await to.takeFrom(from), [], "a group that is gone has none");
});

t.test("HostCgroup.usage: both versions tell the same by the same names", async (t) => {
	const folder = t.testdir({
		two: {
			pod: {
				"cpu.stat": "usage_usec 7\nuser_usec 4\nsystem_usec 3\n",
				"memory.current": "4096\n",
				"memory.max": "max\n",
				"memory.stat": "anon 100\ninactive_file 50\n",
				"pids.current": "3\n",
			},
		},
		one: {
			pod: {
				"cpuacct.usage": "7000\n",
				"cpuacct.stat": "user 2\nsystem 1\n",
				"memory.usage_in_bytes": "4096\n",
				"memory.limit_in_bytes": "8192\n",
				"memory.stat": "cache 1\ntotal_cache 60\ntotal_rss 100\ntotal_inactive_file 50\n",
				"pids.current": "3\n",
			},
		},
	});
	const of = (name: string, version: 1 | 2) =>
		new HostCgroup("/pod", [{ mountPoint: join(folder, name), version, controllers: [] }]).usage();
	t.match(of("two", 2), {
		cpuNanos: 7000,
		userNanos: 4000,
		systemNanos: 3000,
		memoryBytes: 4096,
		memoryLimitBytes: Number.MAX_SAFE_INTEGER,
		memory: { anon: 100, inactive_file: 50 },
		processes: 3,
	});
	t.match(of("one", 1), {
		cpuNanos: 7000,
		userNanos: 20_000_000,
		systemNanos: 10_000_000,
		memoryBytes: 4096,
		memoryLimitBytes: 8192,
		memory: { anon: 100, file: 60, inactive_file: 50 },
		processes: 3,
	});
	t.match(new HostCgroup("/none", []).usage(), { cpuNanos: 0, memoryBytes: 0, memory: {}, processes: 0 });
});
