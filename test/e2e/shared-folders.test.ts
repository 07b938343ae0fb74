/** Folders of the node that VMs share by virtio-fs, where the operator allows it: what runc does with a folder works, and nothing stays. */
import assert from "node:assert/strict";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { FILES } from "../conformance/cases/files.ts";
import { withVolumes, type ConformanceCase } from "../conformance/context.ts";
import { runSuite } from "../conformance/suite.ts";
import { SNP_HANDLER } from "../support/cri/containerd-config.ts";
import { isDaemon } from "../support/leftovers.ts";
import { requireBuilt } from "../support/paths.ts";

const CASES: readonly ConformanceCase[] = [
	...FILES.filter(({ id }) => ["folder-write", "folder-live", "folder-shared"].includes(id)),
	{
		id: "share-survival",
		name: "a shared folder goes on when our daemon is killed, and goes with the last container that has it",
		check: async (context) => {
			const pod = await context.pod();
			const host_path = join(pod.dir, "data");
			mkdirSync(host_path);
			const daemons = () => context.bed.containerd.processes().filter(({ commandLine }) => commandLine.includes(`source=${host_path},`));
			const one = await pod.sleeper({ mounts: [{ container_path: "/data", host_path }] });
			const other = await pod.sleeper({ mounts: [{ container_path: "/other", host_path }] });
			const served = daemons().length;
			assert.notEqual(served, 0);
			for (const daemon of context.bed.containerd.processes().filter(isDaemon)) process.kill(daemon.pid, "SIGKILL");
			await one.output("echo one > /data/file");
			await one.stop(0);
			await one.remove();
			assert.equal(await other.output("cat /other/file; echo two > /other/second"), "one");
			assert.equal(daemons().length, served);
			await other.stop(0);
			await other.remove();
			assert.deepEqual(readdirSync(host_path).toSorted(), ["file", "second"]);
			assert.deepEqual(daemons(), []);
			assert.equal(await pod.output("cat /data/second", { mounts: [{ container_path: "/data", host_path }] }), "two");
		},
	},
	{
		id: "share-readonly",
		name: "a folder that is shared to be read takes no writes, from whoever is root in the guest",
		check: async (context) => {
			const pod = await context.pod();
			const host_path = join(pod.dir, "data");
			mkdirSync(host_path);
			writeFileSync(join(host_path, "file"), "text");
			const container = await pod.sleeper({
				mounts: [{ container_path: "/data", host_path, readonly: true }],
				security: { capabilities: { add_capabilities: ["SYS_ADMIN"] } },
			});
			assert.equal(await container.output("cat /data/file"), "text");
			assert.match((await container.sh("mount -o remount,rw,bind /data; echo x > /data/file")).stderr, /read-only/i);
			assert.equal(readFileSync(join(host_path, "file"), "utf8"), "text");
		},
	},
	{
		id: "share-csi",
		name: "a persistent volume that the node has mounted is written by containers, in whole and by subPath",
		check: withVolumes(async (pod, volumes) => {
			const host_path = await volumes.csi("pvc", await volumes.image("pvc", 32, "ext4"), false);
			await volumes.makeFolder(join(host_path, "sub"));
			const part = await volumes.part("pvc", join(host_path, "sub"), "folder");
			const whole = await pod.sleeper({ mounts: [{ container_path: "/data", host_path }] });
			await pod.output("echo text > /part/file", { mounts: [{ container_path: "/part", host_path: part }] });
			assert.equal(await whole.output("cat /data/sub/file"), "text");
		}),
	},
	{
		id: "share-vm-lost",
		name: "nothing of a shared folder stays when the VM is killed",
		check: async (context) => {
			const pod = await context.pod();
			const host_path = join(pod.dir, "data");
			mkdirSync(host_path);
			const container = await pod.sleeper({ mounts: [{ container_path: "/data", host_path, readonly: true }] });
			pod.killVm();
			await container.exited();
		},
	},
];

requireBuilt();
await runSuite({
	versions: ["2"],
	handlers: [SNP_HANDLER],
	cases: CASES,
	config: { shareFolders: true },
	onOutcome: ({ caseId, failure }) => t.equal(failure, undefined, caseId),
});
