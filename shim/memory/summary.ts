/** The memory of a node and its VMs in a few numbers, for snpctl. */

import type { Exemption } from "./ports.ts";
import type { Sample } from "./source.ts";
import type { VmMemory } from "./vm-memory.ts";

/** One VM. Bytes; null: not known. */
export interface VmMemorySummary {
	readonly namespace: string;
	readonly podId: string;
	readonly sizeBytes: number;
	/** What the node holds for it, its hypervisor included. */
	readonly residentBytes: number | null;
	/** The same, what is shared with others divided among them. */
	readonly shareBytes: number | null;
	/** The most that was resident at once. */
	readonly peakBytes: number | null;
	/** What its balloon was asked to take; null: not known yet. */
	readonly balloonBytes: number | null;
	/** Why nothing is taken from it; null: it gives when memory is short. */
	readonly exempt: Exemption | null;
}

/** A node. */
export interface MemorySummary {
	readonly totalBytes: number;
	readonly availableBytes: number;
	readonly reserveBytes: number;
	/** 0: none. */
	readonly budgetBytes: number;
	/** Percent of the last ten seconds in which a task waited for memory; null where the kernel does not tell. */
	readonly stalledPercent: number | null;
	readonly short: boolean;
	/** What VMs hold that wait for a pod. */
	readonly waitingBytes: number;
	readonly vms: readonly VmMemorySummary[];
}

/** What a sample says of these VMs. */
export function summarise(
	sample: Sample,
	vms: readonly VmMemory[],
	node: Pick<MemorySummary, "reserveBytes" | "budgetBytes" | "waitingBytes" | "short">,
): MemorySummary {
	const { totalBytes, availableBytes, stalledPercent } = sample.node;
	return {
		totalBytes,
		availableBytes,
		...node,
		stalledPercent: stalledPercent ?? null,
		vms: vms.map(({ options, sizeBytes, balloonBytes, known, exempt, watch }) => {
			const used = watch === undefined ? undefined : sample.process(watch);
			return {
				namespace: options.namespace,
				podId: options.name,
				sizeBytes,
				residentBytes: used?.residentBytes ?? null,
				shareBytes: used?.shareBytes ?? null,
				peakBytes: used?.peakBytes ?? null,
				balloonBytes: known ? balloonBytes : null,
				exempt: exempt ?? null,
			};
		}),
	};
}
