/** From the guest agent's statistics to the metrics that containerd expects of Stats: those of cgroup v2 (containerd/cgroups, v2 metrics). */

import Long from "long";

import type { grpc } from "../../proto/gen/agent.js";
import { io } from "../../proto/gen/containerd.js";

const { Metrics } = io.containerd.cgroups.v2;

/** The type URL of the answer. */
export const METRICS_TYPE_URL = "io.containerd.cgroups.v2.Metrics";

const NANOS_PER_MICRO = 1000;

type Count = number | Long | null | undefined;

/** The agent counts CPU time in nanoseconds, cgroup v2 in microseconds. */
function micros(nanos: Count): Long {
	return Long.fromValue(nanos ?? 0)
		.toUnsigned()
		.divide(NANOS_PER_MICRO);
}

/** Names of memory.stat that have a field of the same name in MemoryStat. */
const MEMORY_FIELDS = [
	"anon",
	"file",
	"kernel_stack",
	"slab",
	"sock",
	"shmem",
	"file_mapped",
	"file_dirty",
	"file_writeback",
	"anon_thp",
	"inactive_anon",
	"active_anon",
	"inactive_file",
	"active_file",
	"unevictable",
	"slab_reclaimable",
	"slab_unreclaimable",
	"pgfault",
	"pgmajfault",
] as const;

function memoryMetrics(memory: grpc.MemoryStats.$Properties): io.containerd.cgroups.v2.MemoryStat.$Properties {
	const stats = memory.stats ?? {};
	const fields = Object.fromEntries(MEMORY_FIELDS.flatMap((name) => (stats[name] === undefined ? [] : [[name, stats[name]]])));
	return {
		...fields,
		usage: memory.usage?.usage ?? 0,
		usage_limit: memory.usage?.limit ?? 0,
		max_usage: memory.usage?.max_usage ?? 0,
		swap_usage: memory.swap_usage?.usage ?? 0,
		swap_limit: memory.swap_usage?.limit ?? 0,
	};
}

/** Encodes the agent's statistics of one container. */
export function encodeMetrics(stats: grpc.StatsContainerResponse.$Properties): Uint8Array {
	const cgroup = stats.cgroup_stats;
	const cpu = cgroup?.cpu_stats?.cpu_usage;
	const throttling = cgroup?.cpu_stats?.throttling_data;
	return Metrics.encode({
		pids: { current: cgroup?.pids_stats?.current ?? 0, limit: cgroup?.pids_stats?.limit ?? 0 },
		cpu: {
			usage_usec: micros(cpu?.total_usage),
			user_usec: micros(cpu?.usage_in_usermode),
			system_usec: micros(cpu?.usage_in_kernelmode),
			nr_periods: throttling?.periods ?? 0,
			nr_throttled: throttling?.throttled_periods ?? 0,
			throttled_usec: micros(throttling?.throttled_time),
		},
		...(cgroup?.memory_stats ? { memory: memoryMetrics(cgroup.memory_stats) } : {}),
	}).finish();
}
