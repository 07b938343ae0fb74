/**
 * From the OCI resources that containerd wrote for the host to those that hold inside the VM (Kata agent protocol, `grpc.LinuxResources`).
 * Pure.
 */

import Long from "long";

import type { grpc } from "../../proto/gen/agent.js";
import type { OciResources } from "./oci-spec.ts";

/** What the agent takes beyond Kata's protocol. */
export interface ResourcesContext {
	/** `snp.limits.v1` */
	readonly limits: boolean;
}

/** Above this a JavaScript number has lost the low bits: RLIM_INFINITY (2^64-1) arrives as 2^64. */
const NEAR_U64_MAX = 2 ** 64 - 4096;

/** Converts a JSON number to u64; what is too near 2^64 to be exact means "no limit". */
export function unsigned64(value: number): Long {
	return value >= NEAR_U64_MAX ? Long.MAX_UNSIGNED_VALUE : Long.fromNumber(value, true);
}

/** Stands for every major or minor number in a device rule. */
const ANY_NUMBER = -1;

/** Converts resources: all that the protocol carries and that names nothing of the host's. The agent decides what its kernel can hold. */
export function guestResources(resources: OciResources, context: ResourcesContext): grpc.LinuxResources.$Properties {
	const { memory, cpu } = resources;
	return {
		Devices: (resources.devices ?? []).map((rule) => ({
			Allow: rule.allow,
			Type: rule.type || "a",
			Major: rule.major ?? ANY_NUMBER,
			Minor: rule.minor ?? ANY_NUMBER,
			Access: rule.access ?? "",
		})),
		...(memory
			? {
					Memory: {
						Limit: memory.limit ?? 0,
						Reservation: memory.reservation ?? 0,
						Swap: memory.swap ?? 0,
						...(memory.swappiness != null ? { Swappiness: unsigned64(memory.swappiness) } : {}),
						DisableOOMKiller: memory.disableOOMKiller ?? false,
					},
				}
			: {}),
		...(cpu
			? {
					CPU: {
						Shares: unsigned64(cpu.shares ?? 0),
						Quota: cpu.quota ?? 0,
						Period: unsigned64(cpu.period ?? 0),
						Cpus: context.limits ? (cpu.cpus ?? "") : "",
						Mems: context.limits ? (cpu.mems ?? "") : "",
					},
				}
			: {}),
		...(resources.pids?.limit != null ? { Pids: { Limit: resources.pids.limit } } : {}),
		...(resources.blockIO?.weight != null ? { BlockIO: { Weight: resources.blockIO.weight } } : {}),
		HugepageLimits: (resources.hugepageLimits ?? []).map((limit) => ({ Pagesize: limit.pageSize, Limit: unsigned64(limit.limit) })),
		Unified: context.limits ? (resources.unified ?? {}) : {},
	};
}

/** The fields that `guestResources` carries, by their table. */
const CARRIED = {
	memory: ["limit", "reservation", "swap", "swappiness", "disableOOMKiller"],
	cpu: ["shares", "quota", "period", "cpus", "mems"],
	blockIO: ["weight"],
} as const;
const CARRIED_AT_TOP = ["devices", "pids", "hugepageLimits", "unified", ...Object.keys(CARRIED)];

/**
 * Names, as `cpu.burst`, what was asked for and does not reach the agent: the protocol has no field for it, or it names the host's devices.
 * For the log: a limit that is passed over in silence is taken for one that holds.
 */
export function resourcesLeftOut(resources: OciResources, context: ResourcesContext): string[] {
	const left = unlisted(resources, CARRIED_AT_TOP, "");
	for (const [table, keys] of Object.entries(CARRIED)) {
		left.push(...unlisted(resources[table], keys, `${table}.`));
	}
	if (!context.limits) {
		const needed = { "cpu.cpus": resources.cpu?.cpus, "cpu.mems": resources.cpu?.mems, unified: resources.unified };
		left.push(...unlisted(needed, [], ""));
	}
	return left;
}

function unlisted(table: unknown, listed: readonly string[], prefix: string): string[] {
	if (typeof table !== "object" || table === null) return [];
	return Object.entries(table)
		.filter(([key, value]) => !listed.includes(key) && isSet(value))
		.map(([key]) => prefix + key);
}

/** Go's JSON often spells "absent" as a zero value. */
function isSet(value: unknown): boolean {
	if (typeof value === "object" && value !== null) return Object.values(value).some(isSet);
	return value !== undefined && value !== null && value !== 0 && value !== false && value !== "";
}
