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
	"workingset_refault",
	"workingset_activate",
	"workingset_nodereclaim",
	"pgrefill",
	"pgscan",
	"pgsteal",
	"pgactivate",
	"pgdeactivate",
	"pglazyfree",
	"pglazyfreed",
	"thp_fault_alloc",
	"thp_collapse_alloc",
] as const;

/** Names of memory.events, which our agent tells among the names of memory.stat, with this in front. */
const EVENTS_PREFIX = "memory.events.";
const MEMORY_EVENTS = ["low", "high", "max", "oom", "oom_kill", "oom_group_kill"] as const;

/** From an operation of the agent's block statistics to the field that counts it. */
const IO_BYTES: Readonly<Record<string, "rbytes" | "wbytes">> = { read: "rbytes", write: "wbytes" };
const IO_OPERATIONS: Readonly<Record<string, "rios" | "wios">> = { read: "rios", write: "wios" };

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
		swap_max_usage: memory.swap_usage?.max_usage ?? 0,
	};
}

/** An agent that tells no events tells at least how often the limit was met. */
function memoryEvents(memory: grpc.MemoryStats.$Properties): io.containerd.cgroups.v2.MemoryEvents.$Properties {
	const stats = memory.stats ?? {};
	const events = MEMORY_EVENTS.map((name) => [name, stats[`${EVENTS_PREFIX}${name}`] ?? 0] as const);
	return { ...Object.fromEntries(events), max: stats[`${EVENTS_PREFIX}max`] ?? memory.usage?.failcnt ?? 0 };
}

/** One entry for each device, as io.stat has it. */
function ioMetrics(block: grpc.BlkioStats.$Properties): io.containerd.cgroups.v2.IOEntry.$Properties[] {
	const devices = new Map<string, io.containerd.cgroups.v2.IOEntry.$Properties>();
	const count = (entries: readonly grpc.BlkioStatsEntry.$Properties[], fields: typeof IO_BYTES | typeof IO_OPERATIONS): void => {
		for (const { major, minor, op, value } of entries) {
			const field = fields[(op ?? "").toLowerCase()];
			const name = `${String(major ?? 0)}:${String(minor ?? 0)}`;
			if (field !== undefined) devices.set(name, { major: major ?? 0, minor: minor ?? 0, ...devices.get(name), [field]: value ?? 0 });
		}
	};
	count(block.io_service_bytes_recursive ?? [], IO_BYTES);
	count(block.io_serviced_recursive ?? [], IO_OPERATIONS);
	return [...devices.values()];
}

function hugePages(sizes: Readonly<Record<string, grpc.HugetlbStats.$Properties>>): io.containerd.cgroups.v2.HugeTlbStat.$Properties[] {
	return Object.entries(sizes).map(([pagesize, { usage, max_usage, failcnt }]) => ({
		pagesize,
		current: usage ?? 0,
		max: max_usage ?? 0,
		failcnt: failcnt ?? 0,
	}));
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
		...(cgroup?.memory_stats ? { memory: memoryMetrics(cgroup.memory_stats), memory_events: memoryEvents(cgroup.memory_stats) } : {}),
		...(cgroup?.blkio_stats ? { io: { usage: ioMetrics(cgroup.blkio_stats) } } : {}),
		hugetlb: hugePages(cgroup?.hugetlb_stats ?? {}),
	}).finish();
}
