/** A pod's VM as the memory room sees it: its VMM and its agent. */

import type { VmPort } from "../memory/ports.ts";
import type { Machine } from "./machine.ts";

/** A balloon alone is the controller's, which looks after others as well. */
const BALLOON_MS = 5_000;

/** @param vmmCallMs how long the VMM may take for a change */
export function memoryPort({ vmm, agent }: Machine, vmmCallMs: number): VmPort {
	return {
		change: ({ vcpus, ramBytes, balloonBytes }) =>
			vmm.client.resize(
				{
					...(vcpus === undefined ? {} : { desired_vcpus: vcpus }),
					...(ramBytes === undefined ? {} : { desired_ram: ramBytes }),
					...(balloonBytes === undefined ? {} : { desired_balloon: balloonBytes }),
				},
				{ timeoutMs: vcpus === undefined && ramBytes === undefined ? Math.min(vmmCallMs, BALLOON_MS) : vmmCallMs },
			),
		guest: (timeoutMs) => agent.memory({ timeoutMs }),
		state: async (timeoutMs) => {
			const { config, memory_actual_size: actual } = await vmm.client.info({ timeoutMs });
			const sizeBytes = (config.memory?.size ?? 0) + (config.memory?.hotplugged_size ?? 0);
			return { sizeBytes, askedBytes: config.balloon?.size, actualBytes: Math.max(0, sizeBytes - (actual ?? sizeBytes)) };
		},
	};
}
