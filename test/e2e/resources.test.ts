/** Limits and devices of a container: what Update changes, and what the rules keep away. A guest has cgroup version 2; the host may not. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { ContainerdApi } from "../support/containerd-api.ts";
import type { Ctr } from "../support/ctr.ts";
import { runCases, type Case } from "../support/fixture.ts";
import { scratchDir } from "../support/shim-config.ts";

const MEMORY_BYTES = 52_428_800;
/** More than the default of guest.memory_mib. */
const WRITTEN_MIB = 280;
const SUM_BYTES = 73_400_320;

/** Values of files in the container's cgroup, the root of its cgroup namespace. The container must be privileged to mount it. */
async function limits(ctr: Ctr, id: string, ...files: readonly string[]): Promise<string[]> {
	const script = `mkdir -p /tmp/cg; test -e /tmp/cg/cgroup.procs || mount -t cgroup2 none /tmp/cg; cd /tmp/cg && cat ${files.join(" ")}`;
	const { stdout, stderr } = await ctr.exec(id, ["sh", "-c", script]);
	if (stderr !== "") throw new Error(`reading ${files.join(" ")} in ${id}: ${stderr}`);
	return stdout.trim().split("\n");
}

/** Makes the node of the guest's first disk and reads it. */
const READ_DISK = 'n=$(cat /sys/block/vda/dev); mknod /tmp/disk b "${n%:*}" "${n#*:}" && head -c 1 /tmp/disk | wc -c';

const cases: Case[] = [
	{
		name: "update: what is named changes, everything else stays; what is wrong is refused and changes nothing",
		vmOnly: true,
		check: async (t, { ctr, containerd }) => {
			const id = ctr.newId("update");
			await ctr.detach(id, ["sleep", "1000"], {
				flags: ["--privileged", "--memory-limit", String(MEMORY_BYTES), "--cpu-quota", "50000", "--cpu-period", "100000"],
			});
			const api = new ContainerdApi(containerd.address, containerd.namespace);
			try {
				t.strictSame(await limits(ctr, id, "cpu.max", "memory.max"), ["50000 100000", String(MEMORY_BYTES)]);
				await api.updateTask(id, { cpu: { period: 200_000 } });
				t.strictSame(await limits(ctr, id, "cpu.max"), ["50000 200000"], "the quota stays");
				await api.updateTask(id, { cpu: { quota: 20_000 } });
				t.strictSame(await limits(ctr, id, "cpu.max"), ["20000 200000"], "the period stays");
				await api.updateTask(id, { memory: { swap: SUM_BYTES } });
				const memory = ["memory.max", "memory.swap.max"];
				t.strictSame(await limits(ctr, id, ...memory), [String(MEMORY_BYTES), String(SUM_BYTES - MEMORY_BYTES)]);
				await api.updateTask(id, {
					devices: [{ allow: false, access: "rwm" }],
					cpu: { cpus: "0", mems: "0" },
					pids: { limit: 77 },
					blockIO: { weight: 100 },
					unified: { "memory.high": "41943040", "memory.oom.group": "1" },
				});
				const files = ["cpuset.cpus", "cpuset.mems", "pids.max", "memory.high", "memory.oom.group", "cpu.max"];
				t.strictSame(await limits(ctr, id, ...files), ["0", "0", "77", "41943040", "1", "20000 200000"]);
				await api.updateTask(id, { cpu: { cpus: "0-95" } });
				t.strictSame(await limits(ctr, id, "cpuset.cpus"), ["0"], "processors that only the host has change nothing");
				await t.rejects(api.updateTask(id, { pids: { limit: 5 }, unified: { "cgroup.freeze": "1" } }), /cgroup\.freeze/);
				await t.rejects(api.updateTask(id, { pids: { limit: 5 }, memory: { swap: 1 } }), /memory and swap together/);
				t.strictSame(await limits(ctr, id, "pids.max"), ["77"]);
			} finally {
				api.close();
			}
			await ctr.remove(id);
		},
	},
	{
		name: "statistics: the limit and what it did to a child, what was read from the disk, and what a working set is without",
		vmOnly: true,
		check: async (t, { ctr, containerd }) => {
			const id = ctr.newId("statistics");
			await ctr.detach(id, ["sleep", "1000"], {
				flags: ["--memory-limit", String(MEMORY_BYTES), "--cpu-quota", "50000", "--cpu-period", "100000"],
			});
			const { code } = await ctr.exec(id, ["sh", "-c", "tail /dev/zero"]);
			t.equal(code, 137, "killed for its memory");
			await ctr.exec(id, ["sh", "-c", "cat /bin/busybox > /tmp/file; sync; while [ $((i = i + 1)) -lt 30000 ]; do :; done"]);
			const metrics = JSON.parse((await ctr.callOk(["task", "metrics", "--format", "json", id])).stdout) as Record<
				string,
				Record<string, unknown>
			>;
			const value = (group: string, name: string): number => Number(metrics[group]?.[name] ?? 0);
			t.equal(value("memory", "usage_limit"), MEMORY_BYTES);
			// The message of containerd 1.6 has no place for it.
			if (!containerd.version.startsWith("1.6")) t.ok(value("memory", "max_usage") > value("memory", "usage"), "it had more");
			t.ok(value("memory", "inactive_file") + value("memory", "active_file") > 0);
			t.ok(value("memory_events", "oom_kill") >= 1);
			t.ok(value("memory_events", "max") >= 1);
			t.ok(value("cpu", "nr_throttled") > 0 && value("cpu", "throttled_usec") > 0);
			t.ok(value("cpu", "user_usec") > 0 && value("cpu", "system_usec") > 0);
			t.ok(value("pids", "current") >= 1);
			const devices = (metrics["io"]?.["usage"] ?? []) as readonly { readonly rbytes?: number; readonly rios?: number }[];
			t.ok(
				devices.some(({ rbytes = 0, rios = 0 }) => rbytes > 0 && rios > 0),
				"its image was read from a disk",
			);
			await ctr.remove(id);
		},
	},
	{
		name: "devices: the guest's disks are for privileged containers, and a capability does not make one",
		vmOnly: true,
		check: async (t, { ctr }) => {
			const capable = await ctr.run(ctr.newId("capable"), ["sh", "-c", READ_DISK], { flags: ["--cap-add", "CAP_SYS_ADMIN"] });
			t.match(capable.stderr, /disk: Operation not permitted/);
			t.equal(capable.stdout, "0\n");
			const privileged = await ctr.run(ctr.newId("privileged"), ["sh", "-c", READ_DISK], { flags: ["--privileged"] });
			t.strictSame([privileged.stderr, privileged.stdout], ["", "1\n"]);
		},
	},
	{
		name: "a container writes more than its VM has memory, and the node has no file of that name",
		vmOnly: true,
		check: async (t, { ctr, containerd }) => {
			const script = `dd if=/dev/zero of=/much bs=1M count=${WRITTEN_MIB} 2>/dev/null && stat -c %s /much && df -m / | tail -n 1`;
			const id = ctr.newId("writes");
			await ctr.detach(id, ["sleep", "1000"]);
			const { stdout, stderr } = await ctr.exec(id, ["sh", "-c", script]);
			t.equal(stderr, "");
			t.match(stdout, new RegExp(`^${WRITTEN_MIB * 2 ** 20}\n`));
			t.strictSame(readdirSync(scratchDir(join(containerd.rootDir, "images"))), []);
			await ctr.remove(id);
		},
	},
];

await runCases(cases, { withControl: false });
