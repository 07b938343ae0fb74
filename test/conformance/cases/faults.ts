/** Bad input, failures, and removal at the wrong moment: a clear answer, and nothing stays behind. */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CriError } from "../../support/cri/client.ts";
import { buildImage, busyboxMembers } from "../../support/image.ts";
import { isDaemon } from "../../support/leftovers.ts";
import { run } from "../../support/process.ts";
import { eventually } from "../../support/retry.ts";
import { SLEEP, type CaseContext, type ConformanceCase, type TestContainer } from "../context.ts";

const WAIT_MS = 60_000;
const NOT_FOUND = 5;
/** A file that is copied into a VM, and takes a while. */
const LARGE_BYTES = 24 * 1024 * 1024;

/** Kills the process that the runtime names as the container's: the VM itself where pods are VMs. */
async function killProcessOf(context: CaseContext, container: TestContainer): Promise<void> {
	const info = (await context.bed.client.containerInfo(container.id)) as { readonly pid?: number };
	assert.ok((info.pid ?? 0) > 1, "the container has a process");
	await run(["nsenter", "-t", String(context.bed.containerd.init.pid), "-p", "-m", "kill", "-9", String(info.pid)]);
}

export const FAULTS: readonly ConformanceCase[] = [
	{
		id: "command-missing",
		name: "a command that is not in the image fails the start, by name; the container counts as ended and is removed",
		check: async (context) => {
			const pod = await context.pod();
			const attempt = async (): Promise<void> => {
				const container = await pod.create(["/bin/no-such-program"], { name: "missing" });
				await container.start();
			};
			await assert.rejects(attempt, /no-such-program/);
			for (const { id, state } of await context.bed.client.listContainers(pod.id)) {
				assert.equal(state, "CONTAINER_EXITED");
				await context.bed.client.removeContainer(id);
			}
			assert.equal(await pod.output("echo alive"), "alive");
		},
	},
	{
		id: "image-without-command",
		name: "an image without a command, in a container that names none, is refused",
		check: async (context) => {
			const image = await buildImage(context.bed.containerd.rootDir, {
				name: "registry.invalid/snp-no-command:1",
				members: busyboxMembers(),
				command: [],
			});
			await context.bed.importImage(image);
			const pod = await context.pod();
			await assert.rejects(pod.create([], { image: { image: image.name } }), /command/);
		},
	},
	{
		id: "image-missing",
		name: "an image that is not there is refused",
		check: async (context) => {
			const pod = await context.pod();
			await assert.rejects(pod.create(SLEEP, { image: { image: "registry.invalid/no-such-image:1" } }), CriError);
		},
	},
	{
		id: "user-missing",
		name: "a user name that the image does not have is refused by name",
		check: async (context) => {
			const pod = await context.pod();
			await assert.rejects(pod.sleeper({ security: { run_as_username: "nobody-here" } }), CriError);
		},
	},
	{
		id: "cwd-is-file",
		name: "a working folder that is a file fails the start and is named",
		check: async (context) => {
			const pod = await context.pod();
			await assert.rejects(pod.sleeper({ working_dir: "/etc/passwd" }), /\/etc\/passwd/);
		},
	},
	{
		id: "mount-source-missing",
		name: "a mount whose source is not there is refused or made, and nothing stays",
		check: async (context) => {
			const pod = await context.pod();
			const mounts = [{ container_path: "/data", host_path: "/proc/no-such-source", readonly: true }];
			await assert.rejects(pod.sleeper({ mounts }), /no-such-source/);
		},
	},
	{
		id: "container-name-twice",
		name: "a second container of the same name and attempt is refused; the first goes on",
		check: async (context) => {
			const pod = await context.pod();
			const first = await pod.sleeper({ name: "twin" });
			await assert.rejects(pod.create(SLEEP, { name: "twin" }), /twin/);
			assert.equal(await first.output("echo alive"), "alive");
		},
	},
	{
		id: "pod-name-twice",
		name: "a second pod of the same name, id and attempt is refused; the first goes on",
		check: async (context) => {
			const pod = await context.pod();
			await assert.rejects(context.bed.client.runPod(pod.config, context.handler), CriError);
			assert.equal(await pod.output("echo alive"), "alive");
		},
	},
	{
		id: "handler-unknown",
		name: "an unknown runtime handler is refused by name",
		check: async (context) => {
			await assert.rejects(context.bed.client.runPod(context.podConfig(), "no-such-handler"), /no-such-handler/);
		},
	},
	{
		id: "unknown-ids",
		name: "calls on containers and pods that don't exist say so; removing them is no error",
		check: async (context) => {
			const { client } = context.bed;
			await assert.rejects(client.containerStatus("0123abcd"), (error: CriError) => error.code === NOT_FOUND);
			await assert.rejects(client.podStatus("0123abcd"), (error: CriError) => error.code === NOT_FOUND);
			await assert.rejects(client.execSync("0123abcd", ["true"]), CriError);
			await client.removePod("0123abcd");
			await client.removeContainer("0123abcd");
		},
	},
	{
		id: "create-in-stopped-pod",
		name: "a container can't be made in a stopped pod",
		check: async (context) => {
			const pod = await context.pod();
			await pod.stop();
			await assert.rejects(pod.sleeper(), CriError);
		},
	},
	{
		id: "killed-during-execs",
		name: "the container's process is killed while five commands run: all are told, nothing hangs, the pod is removed",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.sleeper();
			const execs = [1, 2, 3, 4, 5].map((number) => container.sh(`echo > /tmp/${number}; sleep 1000`).catch((error: unknown) => error));
			await eventually("five commands", WAIT_MS, async () => ((await container.output("ls /tmp | wc -l")) === "5" ? true : undefined));
			await killProcessOf(context, container);
			for (const outcome of await Promise.all(execs))
				assert.ok(outcome instanceof CriError || (outcome as { exitCode: number }).exitCode === 137);
			assert.equal((await container.exited()).exit_code, 137);
			await pod.stop();
			await pod.remove();
		},
	},
	{
		id: "killed-then-restarted",
		name: "after its process was killed a container is known as ended, and a new pod takes its place",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.sleeper();
			await killProcessOf(context, container);
			await container.exited();
			await pod.remove();
			const again = await context.pod({ metadata: { ...pod.config.metadata, attempt: 1 } });
			assert.equal(await again.output("echo new"), "new");
		},
	},
	{
		id: "daemon-killed",
		name: "our daemon is killed: the pod goes on, its containers are reached, told of and removed as before",
		check: async (context) => {
			const pod = await context.pod({ linux: { sysctls: { "kernel.shm_rmid_forced": "1" } } });
			const container = await pod.run(["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"]);
			await container.logged(/^3$/m);
			for (const daemon of context.bed.containerd.processes().filter(isDaemon)) process.kill(daemon.pid, "SIGKILL");
			assert.equal(await container.output("echo alive"), "alive");
			assert.equal(await pod.output("cat /proc/sys/kernel/shm_rmid_forced"), "1");
			await container.stop(0);
			assert.equal((await container.status()).exit_code, 137);
			const numbers = container.log().map(({ text }) => Number(text));
			assert.deepEqual(
				numbers,
				numbers.map((_, index) => index + 1),
			);
		},
	},
	{
		id: "removal-during-creation",
		name: "a pod that is given up while it is made leaves nothing",
		check: async (context) => {
			for (const timeoutMs of [50, 150, 400, 700, 1000]) {
				const made = await context.bed.client.runPod(context.podConfig(), context.handler, { timeoutMs }).catch(() => undefined);
				if (made !== undefined) await context.bed.client.removePod(made);
			}
			await eventually("no pod", WAIT_MS, async () => {
				for (const id of await context.bed.client.podIds()) {
					await context.bed.client.stopPod(id);
					await context.bed.client.removePod(id);
				}
				return (await context.bed.client.podIds()).length === 0 ? true : undefined;
			});
			assert.equal(await (await context.pod()).output("echo next"), "next");
		},
	},
	{
		id: "removal-during-container-start",
		name: "a pod that is removed while its container is made leaves nothing",
		check: async (context) => {
			const pod = await context.pod();
			const { containerd } = context.bed;
			// So large a copy that the removal comes in the middle of it.
			const host_path = join(pod.dir, "large");
			writeFileSync(host_path, Buffer.alloc(LARGE_BYTES, 1));
			const container = await pod.create(SLEEP, { mounts: [{ container_path: "/large", host_path, readonly: true }] });
			const making = container.start().catch((error: unknown) => error);
			const journal = containerd.seen(join(containerd.stateDir, "p", containerd.podKey(pod.id), "journal.json"));
			if (context.isVm)
				await eventually("the making", WAIT_MS, () => (readFileSync(journal, "utf8").includes('"whole":false') ? true : undefined));
			// containerd removes no container while it starts it: as the node's agent does, ask again.
			await eventually("the pod's removal", WAIT_MS, async () => {
				await pod.remove();
				return true;
			});
			await making;
			for (const { id } of await context.bed.client.listContainers()) await context.bed.client.removeContainer(id);
		},
	},
	{
		id: "stop-during-exec",
		name: "a container that is stopped while a command runs in it tells the command's caller",
		check: async (context) => {
			const container = await (await context.pod()).sleeper();
			const exec = container.sh("echo > /tmp/mark; sleep 1000").catch((error: unknown) => error);
			await eventually("the command", WAIT_MS, async () => ((await container.output("ls /tmp")) === "mark" ? true : undefined));
			await container.stop(0);
			const outcome = await exec;
			assert.ok(outcome instanceof CriError || (outcome as { exitCode: number }).exitCode === 137);
		},
	},
	{
		id: "pods-parallel",
		name: "three pods are made, used and removed at the same time",
		check: async (context) => {
			const outputs = await Promise.all(
				[1, 2, 3].map(async (number) => {
					const pod = await context.pod();
					const output = await pod.output(`echo ${number}`);
					await pod.remove();
					return output;
				}),
			);
			assert.deepEqual(outputs, ["1", "2", "3"]);
		},
	},
];
