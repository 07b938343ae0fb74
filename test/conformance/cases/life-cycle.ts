/** Pods and containers come, run and go. */
import assert from "node:assert/strict";
import { CriError } from "../../support/cri/client.ts";
import { buildImage, busyboxMembers } from "../../support/image.ts";
import { SLEEP, type ConformanceCase } from "../context.ts";

const RESTARTS = 10;

export const LIFE_CYCLE: readonly ConformanceCase[] = [
	{
		id: "pod-ready",
		name: "a started pod is ready, has an address, its labels and its handler",
		check: async (context) => {
			const pod = await context.pod({ labels: { app: "web" }, annotations: { note: "kept" } });
			const status = await context.bed.client.podStatus(pod.id);
			assert.equal(status.state, "SANDBOX_READY");
			assert.match(status.network?.ip ?? "", /^10\.88\./);
			assert.equal(status.labels["app"], "web");
			assert.equal(status.runtime_handler, context.handler);
		},
	},
	{
		id: "pod-stop",
		name: "a stopped pod is not ready; stopping and removing may be repeated; a removed pod is unknown",
		check: async (context) => {
			const pod = await context.pod();
			await pod.stop();
			assert.equal((await context.bed.client.podStatus(pod.id)).state, "SANDBOX_NOTREADY");
			await pod.stop();
			await pod.remove();
			await pod.remove();
			await assert.rejects(context.bed.client.podStatus(pod.id), (error: CriError) => error.code === 5);
		},
	},
	{
		id: "pod-stop-with-containers",
		name: "stopping a pod ends its containers",
		check: async (context) => {
			const pod = await context.pod();
			const [first, second] = [await pod.sleeper(), await pod.sleeper()];
			await pod.stop();
			assert.equal((await first.status()).state, "CONTAINER_EXITED");
			assert.equal((await second.status()).state, "CONTAINER_EXITED");
		},
	},
	{
		id: "pod-remove-running",
		name: "a pod is removed with its running containers",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.sleeper();
			await pod.remove();
			await assert.rejects(container.status(), (error: CriError) => error.code === 5);
		},
	},
	{
		id: "pod-pair",
		name: "two pods live side by side and don't see each other's files and processes",
		check: async (context) => {
			const [a, b] = [await context.pod(), await context.pod()];
			const [first, second] = [await a.sleeper(), await b.sleeper()];
			await first.output("echo mine > /tmp/mark");
			assert.equal((await second.sh("cat /tmp/mark")).exitCode, 1);
			await a.remove();
			assert.equal((await second.status()).state, "CONTAINER_RUNNING");
			assert.equal(await second.output("echo alive"), "alive");
		},
	},
	{
		id: "container-states",
		name: "a container is created, running, exited, with times in their order",
		check: async (context) => {
			const pod = await context.pod();
			// Not at once: the runtime may tell the end of a very short life before its beginning.
			const container = await pod.create(["sh", "-c", "sleep 0.5; exit 0"]);
			const created = await container.status();
			assert.deepEqual([created.state, created.started_at, created.finished_at], ["CONTAINER_CREATED", 0, 0]);
			await container.start();
			const ended = await container.exited();
			assert.deepEqual([ended.exit_code, ended.reason], [0, "Completed"]);
			assert.ok(created.created_at > 0 && ended.started_at >= created.created_at && ended.finished_at >= ended.started_at);
			const sleeper = await pod.sleeper();
			assert.equal((await sleeper.status()).state, "CONTAINER_RUNNING");
		},
	},
	{
		id: "container-exit-code",
		name: "the exit code of a container is known, with the reason",
		check: async (context) => {
			const pod = await context.pod();
			const { status } = await pod.result(["sh", "-c", "exit 42"]);
			assert.deepEqual([status.exit_code, status.reason], [42, "Error"]);
		},
	},
	{
		id: "container-signal-code",
		name: "a container that a signal ended has 128 and the signal's number",
		check: async (context) => {
			const pod = await context.pod();
			const { status } = await pod.result(["sh", "-c", "sh -c 'kill -USR1 $$'; exit $?"]);
			assert.equal(status.exit_code, 138);
		},
	},
	{
		id: "container-metadata",
		name: "labels, annotations and log path of a container are kept",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.create(SLEEP, { name: "named", labels: { part: "front" }, annotations: { note: "here" } });
			const status = await container.status();
			assert.deepEqual([status.labels["part"], status.annotations["note"]], ["front", "here"]);
			assert.equal(status.log_path, container.logFile);
		},
	},
	{
		id: "container-list",
		name: "the containers of a pod are listed with their states",
		check: async (context) => {
			const [pod, other] = [await context.pod(), await context.pod()];
			const running = await pod.sleeper();
			const created = await pod.create(SLEEP);
			await other.sleeper();
			const found = (await context.bed.client.listContainers(pod.id)).map(({ id, state }) => [id, state]);
			assert.deepEqual(
				new Map(found as [string, string][]),
				new Map([
					[running.id, "CONTAINER_RUNNING"],
					[created.id, "CONTAINER_CREATED"],
				]),
			);
		},
	},
	{
		id: "container-remove-created",
		name: "a container that never ran is removed",
		check: async (context) => {
			const pod = await context.pod();
			await (await pod.create(SLEEP)).remove();
			assert.deepEqual(await context.bed.client.listContainers(pod.id), []);
		},
	},
	{
		id: "container-remove-running",
		name: "a running container is removed, its neighbour goes on",
		check: async (context) => {
			const pod = await context.pod();
			const [goes, stays] = [await pod.sleeper(), await pod.sleeper()];
			await goes.remove();
			assert.equal(await stays.output("echo alive"), "alive");
		},
	},
	{
		id: "container-start-twice",
		name: "a running container can't be started again, and goes on",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.sleeper();
			await assert.rejects(container.start(), CriError);
			assert.equal(await container.output("echo alive"), "alive");
		},
	},
	{
		id: "container-many",
		name: "five containers of a pod run at once, each with its own root file system",
		check: async (context) => {
			const pod = await context.pod();
			for (const number of [1, 2, 3, 4, 5]) {
				const container = await pod.sleeper();
				assert.equal(await container.output(`ls /tmp; echo ${number} > /tmp/number; cat /tmp/number`), String(number));
			}
			assert.equal((await context.bed.client.listContainers(pod.id)).length, 5);
		},
	},
	{
		id: "container-parallel",
		name: "three containers are made and started at the same time",
		check: async (context) => {
			const pod = await context.pod();
			const outputs = await Promise.all([1, 2, 3].map(async (number) => await pod.output(`echo ${number}`, { name: `p${number}` })));
			assert.deepEqual(outputs, ["1", "2", "3"]);
		},
	},
	{
		id: "init-container",
		name: "an init container runs to its end before the next one, and stays as it ended",
		check: async (context) => {
			const pod = await context.pod();
			const init = await pod.run(["sh", "-c", "echo prepared"], { name: "init" });
			const ended = await init.exited();
			assert.equal(ended.exit_code, 0);
			const main = await pod.sleeper();
			assert.ok((await main.status()).started_at >= ended.finished_at);
			assert.equal(init.logText(), "prepared\n");
		},
	},
	{
		id: "sidecar-exit",
		name: "the end of one container leaves the others alone",
		check: async (context) => {
			const pod = await context.pod();
			const main = await pod.sleeper();
			const { status } = await pod.result(["sh", "-c", "exit 3"]);
			assert.equal(status.exit_code, 3);
			assert.equal((await main.status()).state, "CONTAINER_RUNNING");
		},
	},
	{
		id: "restart",
		name: "a container that ended is started anew under the same name with the next attempt, with a fresh root",
		check: async (context) => {
			const pod = await context.pod();
			const first = await pod.run(["sh", "-c", "echo one > /tmp/mark; exit 1"], {
				metadata: { name: "again", attempt: 0 },
				log_path: "0.log",
			});
			assert.equal((await first.exited()).exit_code, 1);
			const second = await pod.run(["sh", "-c", "ls /tmp; echo two"], { metadata: { name: "again", attempt: 1 }, log_path: "1.log" });
			assert.equal((await second.exited()).exit_code, 0);
			assert.equal(second.logText(), "two\n");
			await first.remove();
		},
	},
	{
		id: "restart-many",
		name: "ten restarts of a container leave nothing in the pod",
		check: async (context) => {
			const pod = await context.pod();
			const stays = await pod.sleeper();
			const mounts = await stays.output("wc -l < /proc/mounts");
			for (let attempt = 0; attempt < RESTARTS; attempt++) {
				const container = await pod.run(["sh", "-c", "exit 1"], { metadata: { name: "crash", attempt }, log_path: `${attempt}.log` });
				await container.exited();
				await container.remove();
			}
			assert.equal(await stays.output("wc -l < /proc/mounts"), mounts);
			assert.equal((await context.bed.client.listContainers(pod.id)).length, 1);
		},
	},
	{
		id: "stop-graceful",
		name: "a container gets SIGTERM and may end by itself within the grace period",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.run(["sh", "-c", "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.1; done"]);
			await container.logged(/ready/);
			await container.stop(30);
			const status = await container.status();
			assert.deepEqual([status.state, status.exit_code], ["CONTAINER_EXITED", 7]);
			assert.match(container.logText(), /bye/);
		},
	},
	{
		id: "stop-kill",
		name: "a container that ignores SIGTERM is killed when the grace period is over",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.run(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"]);
			await container.logged(/ready/);
			await container.stop(1);
			assert.equal((await container.status()).exit_code, 137);
		},
	},
	{
		id: "stop-at-once",
		name: "without a grace period a container is killed at once, with its children",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.run(["sh", "-c", "sleep 1000 & trap '' TERM; wait"]);
			await container.stop(0);
			assert.equal((await container.status()).exit_code, 137);
		},
	},
	{
		id: "stop-ended",
		name: "stopping a container that has ended does nothing",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.run(["true"]);
			await container.exited();
			await container.stop();
			assert.equal((await container.status()).exit_code, 0);
		},
	},
	{
		id: "stop-signal",
		name: "the stop signal of the image is used",
		check: async (context) => {
			const image = await buildImage(context.bed.containerd.rootDir, {
				name: "registry.invalid/snp-stop-signal:1",
				members: busyboxMembers(),
				stopSignal: "SIGUSR1",
			});
			await context.bed.importImage(image);
			const pod = await context.pod();
			const container = await pod.run(["sh", "-c", "trap 'exit 21' USR1; echo ready; while :; do sleep 0.1; done"], {
				image: { image: image.name },
			});
			await container.logged(/ready/);
			await container.stop(30);
			assert.equal((await container.status()).exit_code, 21);
		},
	},
	{
		id: "image-defaults",
		name: "entrypoint, command, environment, user and working folder of the image hold, and are overridden one by one",
		check: async (context) => {
			const image = await buildImage(context.bed.containerd.rootDir, {
				name: "registry.invalid/snp-defaults:1",
				members: busyboxMembers(),
				entrypoint: ["/bin/sh", "-c", 'echo "$0 $1 $(pwd) $(id -u) $NAME"'],
				command: ["from", "image"],
				env: ["NAME=image"],
				cwd: "/usr/bin",
				user: "1000",
			});
			await context.bed.importImage(image);
			const pod = await context.pod();
			const plain = await pod.result([], { image: { image: image.name } });
			assert.equal(plain.stdout, "from image /usr/bin 1000 image\n");
			const changed = await pod.result([], {
				image: { image: image.name },
				args: ["from", "pod"],
				working_dir: "/etc",
				envs: [{ key: "NAME", value: "pod" }],
			});
			assert.equal(changed.stdout, "from pod /etc 1000 pod\n");
			const command = await pod.result(["echo", "own"], { image: { image: image.name } });
			assert.equal(command.stdout, "own\n");
		},
	},
];
