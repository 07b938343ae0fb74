/** Limits, their change, and what is told of use. */
import assert from "node:assert/strict";
import { eventually } from "../../support/retry.ts";
import type { ConformanceCase } from "../context.ts";

const MIB = 1024 * 1024;
const WAIT_MS = 30_000;
const PERIOD_US = 100_000;

/** A container's memory limit in bytes as it sees it itself, by either version of cgroups. */
const MEMORY_LIMIT = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
/** Its CPU quota and period in microseconds. */
const CPU_LIMIT =
	"cat /sys/fs/cgroup/cpu.max 2>/dev/null || echo $(cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us)";

export const RESOURCES: readonly ConformanceCase[] = [
	{
		id: "memory-limit",
		name: "a container sees its memory limit in its cgroup",
		check: async (context) => {
			const pod = await context.pod();
			assert.equal(await pod.output(MEMORY_LIMIT, { linux: { resources: { memory_limit_in_bytes: 64 * MIB } } }), String(64 * MIB));
		},
	},
	{
		id: "memory-oom",
		name: "a container over its memory limit is killed, and its status says why",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.run(["tail", "/dev/zero"], { linux: { resources: { memory_limit_in_bytes: 32 * MIB } } });
			const status = await container.exited();
			assert.equal(status.exit_code, 137);
			await eventually("the reason", WAIT_MS, async () => ((await container.status()).reason === "OOMKilled" ? true : undefined));
		},
	},
	{
		id: "memory-oom-child",
		name: "a child over the memory limit is killed, the container goes on",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.run(["sh", "-c", "tail /dev/zero; echo child $?; sleep 100000"], {
				linux: { resources: { memory_limit_in_bytes: 32 * MIB } },
			});
			await container.logged(/child 137/);
			assert.equal((await container.status()).state, "CONTAINER_RUNNING");
		},
	},
	{
		id: "cpu-limit",
		name: "a container sees its CPU limit in its cgroup",
		check: async (context) => {
			const pod = await context.pod();
			const resources = { cpu_quota: PERIOD_US / 2, cpu_period: PERIOD_US };
			assert.equal(await pod.output(CPU_LIMIT, { linux: { resources } }), `${PERIOD_US / 2} ${PERIOD_US}`);
		},
	},
	{
		id: "update-memory",
		name: "the memory limit of a running container is changed",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.sleeper({ linux: { resources: { memory_limit_in_bytes: 64 * MIB } } });
			await context.bed.client.updateContainer(container.id, { memory_limit_in_bytes: 96 * MIB });
			assert.equal(await container.output(MEMORY_LIMIT), String(96 * MIB));
		},
	},
	{
		id: "update-cpu",
		name: "the CPU limit of a running container is changed",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.sleeper({ linux: { resources: { cpu_quota: PERIOD_US / 2, cpu_period: PERIOD_US } } });
			await context.bed.client.updateContainer(container.id, { cpu_quota: PERIOD_US / 4, cpu_period: PERIOD_US });
			assert.equal(await container.output(CPU_LIMIT), `${PERIOD_US / 4} ${PERIOD_US}`);
		},
	},
	{
		id: "update-memory-large",
		name: "a memory limit is raised over what the pod had at its start, and the memory is there",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.sleeper({ linux: { resources: { memory_limit_in_bytes: 64 * MIB } } });
			await context.bed.client.updateContainer(container.id, { memory_limit_in_bytes: 320 * MIB });
			await eventually("the memory", WAIT_MS, async () => {
				const kib = Number(await container.output("awk '/^MemTotal/ {print $2}' /proc/meminfo"));
				return kib > 320 * 1024 ? true : undefined;
			});
			assert.equal(await container.output(MEMORY_LIMIT), String(320 * MIB));
		},
	},
	{
		id: "update-cpu-large",
		name: "a CPU limit is raised over what the pod had at its start",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.sleeper({ linux: { resources: { cpu_quota: PERIOD_US, cpu_period: PERIOD_US } } });
			await context.bed.client.updateContainer(container.id, { cpu_quota: 2 * PERIOD_US, cpu_period: PERIOD_US });
			assert.equal(await container.output(CPU_LIMIT), `${2 * PERIOD_US} ${PERIOD_US}`);
			assert.equal(await container.output("echo alive"), "alive");
		},
	},
	{
		id: "cpuset",
		name: "a container runs on the processors that it is given, its commands too",
		check: async (context) => {
			const pod = await context.pod({ linux: { resources: { cpu_quota: 2 * PERIOD_US, cpu_period: PERIOD_US } } });
			const container = await pod.sleeper({ linux: { resources: { cpuset_cpus: "0" } } });
			assert.equal(await container.output("nproc; awk '/^Cpus_allowed_list/ {print $2}' /proc/self/status"), "1\n0");
			assert.equal(await pod.output("nproc", { linux: { resources: { cpuset_cpus: "0" } } }), "1");
		},
	},
	{
		id: "oom-score",
		name: "the out-of-memory score of a container is set",
		check: async (context) => {
			const pod = await context.pod();
			assert.equal(await pod.output("cat /proc/self/oom_score_adj", { linux: { resources: { oom_score_adj: 500 } } }), "500");
		},
	},
	{
		id: "stats-container",
		name: "a container's use of CPU and memory is told and grows with its work",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.sleeper();
			const before = (await context.bed.client.containerStats(container.id)).cpu?.usage_core_nano_seconds?.value ?? 0;
			await container.output("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; head -c 8000000 /dev/zero > /dev/shm/ballast");
			const stats = await context.bed.client.containerStats(container.id);
			assert.ok((stats.cpu?.usage_core_nano_seconds?.value ?? 0) > before);
			assert.ok((stats.memory?.working_set_bytes?.value ?? 0) > 4 * MIB);
		},
	},
	{
		id: "stats-list",
		name: "the use of all containers of a pod is listed",
		check: async (context) => {
			const pod = await context.pod();
			const [first, second] = [await pod.sleeper(), await pod.sleeper()];
			const ids = (await context.bed.client.listContainerStats(pod.id)).map((stats) => stats.attributes?.id);
			assert.deepEqual(new Set(ids), new Set([first.id, second.id]));
		},
	},
	{
		id: "stats-pod",
		name: "a pod's use is told, with its containers'",
		check: async (context) => {
			const pod = await context.pod();
			const container = await pod.sleeper();
			const stats = await context.bed.client.podStats(pod.id);
			assert.ok((stats.linux?.cpu?.usage_core_nano_seconds?.value ?? 0) > 0);
			assert.ok((stats.linux?.memory?.working_set_bytes?.value ?? 0) > 0);
			assert.deepEqual(
				stats.linux?.containers.map((entry) => entry.attributes?.id),
				[container.id],
			);
		},
	},
	{
		id: "size-memory",
		name: "a pod whose containers ask for memory has room for it",
		check: async (context) => {
			const resources = { memory_limit_in_bytes: 300 * MIB };
			const pod = await context.pod({ linux: { resources } });
			const kib = Number(await pod.output("awk '/^MemTotal/ {print $2}' /proc/meminfo", { linux: { resources } }));
			assert.ok(kib >= 300 * 1024, `MemTotal is ${kib} KiB`);
		},
	},
	{
		id: "size-over-node",
		name: "a pod whose containers ask for more memory than the node has is refused as a VM, with both figures",
		check: async (context) => {
			const attempt = context.pod({ linux: { resources: { memory_limit_in_bytes: 2 ** 50 } } });
			if (context.isVm) await assert.rejects(attempt, /asks for 1073741824 MiB of memory.*this node has \d+ MiB/);
			else assert.equal(await (await attempt).output("echo runs"), "runs");
		},
	},
	{
		id: "size-cpu",
		name: "a pod whose containers ask for two CPUs has them",
		check: async (context) => {
			const pod = await context.pod({ linux: { resources: { cpu_quota: 2 * PERIOD_US, cpu_period: PERIOD_US } } });
			assert.ok(Number(await pod.output("nproc")) >= 2);
		},
	},
];
