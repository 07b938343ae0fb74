/** emptyDirs: on disk, in memory; what the node sees of them, and what they hold. */
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { isDaemon } from "../../support/leftovers.ts";
import { runOk } from "../../support/process.ts";
import { eventually } from "../../support/retry.ts";
import { withVolumes, type ConformanceCase } from "../context.ts";

const WAIT_MS = 60_000;
const MIB = 1024 * 1024;
const GROUP = 2000;
const WRITTEN_MIB = 40;
/** What a file system takes for itself, and what is free and not given back. */
const MORE_MIB = 20;
/** A disk of the node, what others take of it, and what a pod writes then. */
const NODE_MIB = { size: 128, others: 90, written: 64 };
const LIMITS_MIB = { little: 1, some: 64 };

/** What kubelet counts of a volume: the blocks of the files in its folder. */
async function usedMib(folder: string): Promise<number> {
	const { stdout } = await runOk(["du", "-s", "--block-size=1", folder]);
	return Number.parseInt(stdout, 10) / MIB;
}

export const EMPTY_DIRS: readonly ConformanceCase[] = [
	{
		id: "empty-dir-shared",
		name: "an emptyDir goes from an init container to others, which share it, with its mode and group",
		check: withVolumes(async (pod, volumes) => {
			const host_path = volumes.emptyDir("work", { mode: 0o2770, gid: GROUP });
			const options = { mounts: [{ container_path: "/data", host_path }], security: { supplemental_groups: [GROUP] } };
			await pod.output("echo prepared > /data/file", options);
			const user = { ...options, security: { ...options.security, run_as_user: { value: 1000 } } };
			const one = await pod.sleeper(user);
			const other = await pod.sleeper(user);
			assert.equal(await one.output("cat /data/file; stat -c '%a %g' /data /data/file"), `prepared\n2770 ${GROUP}\n644 ${GROUP}`);
			await one.output("echo between > /data/two");
			assert.equal(await other.output("cat /data/two"), "between");
		}),
	},
	{
		id: "empty-dir-memory",
		name: "an emptyDir in memory has its size, is shared, and stays when containers go",
		check: withVolumes(async (pod, volumes) => {
			const host_path = await volumes.memory("fast", 2 * MIB);
			const mounts = [{ container_path: "/fast", host_path }];
			await pod.output("echo kept > /fast/file", { mounts });
			const container = await pod.sleeper({ mounts });
			assert.equal(
				await container.output("cat /fast/file; stat -f -c %T /fast; df -k /fast | awk 'END { print $2 }'"),
				"kept\ntmpfs\n2048",
			);
			const full = await container.sh("dd if=/dev/zero of=/fast/big bs=64k count=64");
			assert.match(full.stderr, /no space/i);
		}),
	},
	{
		id: "empty-dir-shm",
		name: "an emptyDir in memory may be the container's /dev/shm",
		check: withVolumes(async (pod, volumes) => {
			const mounts = [{ container_path: "/dev/shm", host_path: await volumes.memory("shm", 3 * MIB) }];
			assert.equal(await pod.output("df -k /dev/shm | awk 'END { print $2 }'", { mounts }), "3072");
		}),
	},
	{
		id: "sub-path-empty-dir",
		name: "a subPath of an emptyDir is the same data as the emptyDir itself, on disk and in memory",
		check: withVolumes(async (pod, volumes) => {
			const disk = volumes.emptyDir("disk");
			const memory = await volumes.memory("memory", MIB);
			for (const volume of [disk, memory]) await volumes.makeFolder(join(volume, "a/b"));
			const parts = await pod.sleeper({
				mounts: [
					{ container_path: "/disk", host_path: await volumes.part("disk", join(disk, "a/b"), "folder") },
					{ container_path: "/memory", host_path: await volumes.part("memory", join(memory, "a/b"), "folder") },
				],
			});
			const whole = await pod.sleeper({
				mounts: [
					{ container_path: "/disk", host_path: disk },
					{ container_path: "/memory", host_path: memory },
				],
			});
			await parts.output("echo 1 > /disk/file; echo 2 > /memory/file");
			assert.equal(await whole.output("cat /disk/a/b/file /memory/a/b/file"), "1\n2");
		}),
	},
	{
		id: "volume-readonly",
		name: "a volume that one container mounts read-only, another one writes",
		check: withVolumes(async (pod, volumes) => {
			const host_path = volumes.emptyDir("work");
			const writer = await pod.sleeper({ mounts: [{ container_path: "/data", host_path }] });
			const reader = await pod.sleeper({ mounts: [{ container_path: "/data", host_path, readonly: true }] });
			await writer.output("echo text > /data/file");
			assert.equal(await reader.output("cat /data/file"), "text");
			assert.match((await reader.sh("echo x > /data/file")).stderr, /read-only/i);
		}),
	},
	{
		id: "empty-dir-use",
		name: "the node sees what is written to an emptyDir, and has the space back when it is deleted, also over the death of our daemon, and when a VM is killed",
		check: withVolumes(async (pod, volumes, context) => {
			const host_path = volumes.emptyDir("work");
			const mounts = [{ container_path: "/data", host_path }];
			const one = await pod.sleeper({ mounts });
			assert.ok((await usedMib(host_path)) < 4, "empty");
			await one.output(`dd if=/dev/urandom of=/data/much bs=1M count=${WRITTEN_MIB} 2>/dev/null; sync`);
			const used = await usedMib(host_path);
			assert.ok(used >= WRITTEN_MIB && used < WRITTEN_MIB + MORE_MIB, `${used} MiB are in use`);
			for (const daemon of context.bed.containerd.processes().filter(isDaemon)) process.kill(daemon.pid, "SIGKILL");
			const other = await pod.sleeper({ mounts });
			assert.equal(await other.output("stat -c %s /data/much; echo kept > /data/file; rm /data/much; sync"), String(WRITTEN_MIB * MIB));
			await eventually("the space of the deleted file", WAIT_MS, async () => ((await usedMib(host_path)) < MORE_MIB ? true : undefined));
			assert.equal(await one.output("cat /data/file"), "kept");
			if (!context.isVm) return;
			pod.killVm();
			await eventually("the end of the file", WAIT_MS, () => (readdirSync(host_path).length === 0 ? true : undefined));
		}),
	},
	{
		id: "empty-dir-limit",
		name: "an emptyDir whose limit a VM knows takes no more than that; others take what they can",
		check: withVolumes(
			async (pod, volumes, context) => {
				if (!context.isVm) return;
				const mounts = ["little", "some", "free"].map((name) => ({ container_path: `/${name}`, host_path: volumes.emptyDir(name) }));
				await pod.output("echo prepared > /some/file", { mounts });
				const container = await pod.sleeper({ mounts });
				for (const [name, limitMib] of Object.entries(LIMITS_MIB)) {
					const fill = await container.sh(`dd if=/dev/zero of=/${name}/much bs=1M count=${limitMib * 2 + MORE_MIB * 4}`);
					assert.match(fill.stderr, /no space left/i);
					const written = Number(await container.output(`stat -c %s /${name}/much`)) / MIB;
					assert.ok(written >= limitMib - 1 && written < limitMib + MORE_MIB * 2, `${name} holds ${written} MiB`);
				}
				await container.output("dd if=/dev/zero of=/free/much bs=1M count=8 2>/dev/null; rm /some/much; cp /some/file /some/copy");
				assert.equal(await pod.output("cat /some/copy", { mounts }), "prepared");
				await pod.stop();
				for (const { host_path } of mounts) assert.deepEqual(readdirSync(host_path), []);
			},
			{ annotations: { "io.containerd.snp.empty-dir-limits": "little=1Mi, some=64Mi" } },
		),
	},
	{
		id: "empty-dir-limit-wrong",
		name: "a limit that can't be read is refused by name",
		check: withVolumes(
			async (pod, volumes, context) => {
				const mounts = [{ container_path: "/data", host_path: volumes.emptyDir("work") }];
				const made = pod.output("echo runs", { mounts });
				if (context.isVm) await assert.rejects(made, /empty-dir-limits: "work=64MB" is no limit/);
				else assert.equal(await made, "runs");
			},
			{ annotations: { "io.containerd.snp.empty-dir-limits": "work=64MB" } },
		),
	},
	{
		id: "empty-dir-limit-astray",
		name: "a limit for an emptyDir that the pod has not is refused by name, with those that it has",
		check: withVolumes(
			async (pod, volumes, context) => {
				const mounts = [{ container_path: "/data", host_path: volumes.emptyDir("work") }];
				const made = pod.output("echo runs", { mounts });
				if (context.isVm) await assert.rejects(made, /empty-dir-limits: the pod has no emptyDir wrok; it has work/);
				else assert.equal(await made, "runs");
			},
			{ annotations: { "io.containerd.snp.empty-dir-limits": "wrok=64Mi" } },
		),
	},
	{
		id: "empty-dir-node-full",
		name: "a node's disk that is full is an error for who writes to an emptyDir there; the pod lives on, and ends",
		check: withVolumes(async (pod, volumes) => {
			const host_path = await volumes.smallNode("work", NODE_MIB.size);
			const container = await pod.sleeper({ mounts: [{ container_path: "/data", host_path }] });
			await container.output("echo early > /data/file; sync");
			await volumes.fillNode(host_path, NODE_MIB.others);
			const full = await container.sh(`dd if=/dev/urandom of=/data/much bs=1M count=${NODE_MIB.written} conv=fsync`);
			assert.notEqual(full.exitCode, 0);
			assert.match(full.stderr, /no space left|input\/output error|read-only/i);
			assert.equal(await container.output("echo lives"), "lives");
			await pod.stop();
		}),
	},
];
