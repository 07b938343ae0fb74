/** What a pod's VM costs the node, in the form of a container's statistics. */

import type { ContainerStats } from "../agent/client.ts";
import type { HostCgroup } from "../host/cgroups.ts";

/** The use of the VMM's control group; nothing when it has none. */
export function vmStats(cgroup: HostCgroup | undefined): ContainerStats {
	const usage = cgroup?.usage();
	if (usage === undefined) return {};
	return {
		cgroup_stats: {
			cpu_stats: {
				cpu_usage: { total_usage: usage.cpuNanos, usage_in_usermode: usage.userNanos, usage_in_kernelmode: usage.systemNanos },
			},
			memory_stats: { usage: { usage: usage.memoryBytes, limit: usage.memoryLimitBytes }, stats: { ...usage.memory } },
			pids_stats: { current: usage.processes },
		},
	};
}
