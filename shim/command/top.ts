/** snpctl top: what the node's memory is held by, and what of it pods have given back. */

import * as v from "valibot";

import { table } from "./table.ts";

const bytes = v.nullable(v.number());

/** snpd's answer to `{"op":"memory"}`. */
export const memorySchema = v.object({
	memory: v.object({
		totalBytes: v.number(),
		availableBytes: v.number(),
		reserveBytes: v.number(),
		budgetBytes: v.number(),
		stalledPercent: v.nullable(v.number()),
		short: v.boolean(),
		/** Absent from answers of older versions. */
		waitingBytes: v.optional(v.number(), 0),
		vms: v.array(
			v.object({
				namespace: v.string(),
				podId: v.string(),
				sizeBytes: v.number(),
				residentBytes: bytes,
				shareBytes: bytes,
				peakBytes: bytes,
				balloonBytes: bytes,
				exempt: v.nullable(v.string()),
			}),
		),
	}),
});

type NodeMemory = v.InferOutput<typeof memorySchema>["memory"];

const BYTES_PER_MIB = 1024 * 1024;
const mib = (value: number | null): string => (value === null ? "-" : String(Math.round(value / BYTES_PER_MIB)));

/** What is said of a pod whose memory is left alone. */
const EXEMPT: Readonly<Record<string, string>> = {
	confidential: "never: its memory is encrypted, and nothing of it can be given back",
	"no balloon": "not asked to: it has no balloon (memory.reclaim)",
	agent: "not asked to: its agent or policy does not tell what it needs",
};

/** Columns are MiB. */
export function renderMemory(memory: NodeMemory): string {
	const rows = memory.vms.map((vm) => [
		vm.namespace,
		vm.podId,
		mib(vm.sizeBytes),
		mib(vm.residentBytes),
		mib(vm.shareBytes),
		mib(vm.peakBytes),
		// What it once had and the node has again.
		mib(vm.peakBytes === null || vm.residentBytes === null ? null : Math.max(0, vm.peakBytes - vm.residentBytes)),
		mib(vm.balloonBytes),
		vm.exempt === null ? "when memory is short" : (EXEMPT[vm.exempt] ?? vm.exempt),
	]);
	const heading = ["NAMESPACE", "POD", "SIZE", "RESIDENT", "PSS", "PEAK", "GIVEN BACK", "BALLOON", "GIVES MORE"];
	return [node(memory), table([heading, ...rows])].join("\n");
}

function node({ totalBytes, availableBytes, reserveBytes, budgetBytes, stalledPercent, short, waitingBytes, vms }: NodeMemory): string {
	const held = vms.reduce((sum, vm) => sum + (vm.residentBytes ?? 0), 0);
	const all = budgetBytes === 0 ? "" : `, ${mib(held + waitingBytes)} of ${mib(budgetBytes)} MiB in all`;
	const parts = [
		`node: ${mib(availableBytes)} of ${mib(totalBytes)} MiB available, ${mib(reserveBytes)} to be kept`,
		`pods hold ${mib(held)} MiB, VMs that wait for one ${mib(waitingBytes)} MiB${all}`,
		stalledPercent === null ? "stalls not known" : `stalled ${stalledPercent} % of the time`,
		short ? "SHORT OF MEMORY" : "at ease",
	];
	return parts.join("; ");
}
