/** How much memory VMs, the node and its control groups use: watched once, read all at once on a thread of its own. */

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";

import { memorySample, memoryUnwatch, memoryWatch, memoryWatchGroup } from "../../native/src/memory.ts";
import type { Detail, RawSample } from "../../native/src/memory.ts";
import { pressureWatch } from "../../native/src/pressure.ts";
import { errnoOf } from "../base/errors.ts";
import type { CgroupHierarchy } from "./cgroups.ts";
import { startTimeOf } from "./processes.ts";

/** What of a process is in memory, in bytes. */
export interface ProcessMemory {
	readonly residentBytes: number;
	/** Its own part of what it shares with others; undefined unless asked for. */
	readonly shareBytes: number | undefined;
	/** The most that was resident at once; undefined unless asked for. */
	readonly peakBytes: number | undefined;
	/** CPU time since its start; undefined unless asked for. */
	readonly cpuMs: number | undefined;
}

/** The node's memory, or that of a control group with a limit. */
export interface PlaceMemory {
	readonly totalBytes: number;
	readonly availableBytes: number;
	/** Percent of the last ten seconds in which a task waited for memory; undefined where the kernel does not tell. */
	readonly stalledPercent: number | undefined;
}

const MS_PER_TICK = 10;
/** Version 1 says "no limit" by a number near 2^63, which no machine has. */
const NO_LIMIT = 2 ** 60;
const NODE_PRESSURE = "/proc/pressure/memory";

/** A number that may be unknown. */
const known = (value: number | undefined): number | undefined => (value === undefined || Number.isNaN(value) ? undefined : value);

/** A process with those that it has started, as one; or a control group. */
export interface Watch {
	readonly ids: readonly number[];
}

/** One sample of all that was watched when it was taken. */
export class MemorySample {
	readonly node: PlaceMemory;
	readonly #raw: RawSample;

	constructor(raw: RawSample) {
		this.#raw = raw;
		this.node = { totalBytes: raw.totalBytes, availableBytes: raw.availableBytes, stalledPercent: known(raw.somePercent) };
	}

	/** A watched process with its helpers; undefined when it is gone, or was not watched yet. */
	process({ ids }: Watch): ProcessMemory | undefined {
		const raw = this.#raw;
		let [resident, share, peak, ticks] = [0, 0, 0, 0];
		for (const [index, id] of ids.entries()) {
			const row = raw.processRow(id);
			const pages = row === undefined ? NaN : raw.process("residentBytes", row);
			// The first is the process itself; a helper may go before it.
			if (index === 0 && Number.isNaN(pages)) return undefined;
			if (row === undefined || Number.isNaN(pages)) continue;
			resident += pages;
			share += raw.process("shareBytes", row);
			peak += raw.process("peakBytes", row);
			ticks += raw.process("ticks", row);
		}
		return { residentBytes: resident, shareBytes: known(share), peakBytes: known(peak), cpuMs: known(ticks * MS_PER_TICK) };
	}

	/** A watched group; undefined when it is gone or has no limit. */
	group({ ids }: Watch): PlaceMemory | undefined {
		const raw = this.#raw;
		const row = raw.groupRow(ids[0] ?? 0);
		if (row === undefined) return undefined;
		const limit = raw.group("limitBytes", row);
		const usage = raw.group("usageBytes", row);
		if (Number.isNaN(usage) || !(limit < NO_LIMIT)) return undefined;
		const used = usage - (known(raw.group("inactiveBytes", row)) ?? 0);
		return { totalBytes: limit, availableBytes: Math.max(0, limit - used), stalledPercent: known(raw.group("stalledPercent", row)) };
	}
}

/**
 * Watches a process and the helpers that it has started by now.
 * @param startTime of the process that is meant: see `startTimeOf`
 * @returns undefined when it is gone
 * @throws SystemError: EMFILE
 */
export function watchProcess(pid: number, startTime: bigint): Watch | undefined {
	const first = tryWatch(pid);
	if (first === undefined) return undefined;
	// Read after opening: if the number has changed hands in between, the times differ.
	if (startTimeOf(pid) !== startTime) {
		memoryUnwatch(first);
		return undefined;
	}
	const ids = [first];
	try {
		for (const helper of helpersOf(pid)) {
			const id = tryWatch(helper);
			if (id !== undefined) ids.push(id);
		}
	} catch (error) {
		for (const id of ids) memoryUnwatch(id);
		throw error;
	}
	return { ids };
}

function tryWatch(pid: number): number | undefined {
	try {
		return memoryWatch(pid);
	} catch (error) {
		if (errnoOf(error) === "ENOENT" || errnoOf(error) === "ESRCH") return undefined;
		throw error;
	}
}

/** What a process's first thread has started, and what that has (proc(5), children). */
function helpersOf(pid: number): number[] {
	let text: string;
	try {
		text = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8");
	} catch {
		return [];
	}
	const children = text.split(" ").filter((word) => word !== "");
	return children.map(Number).flatMap((child) => [child, ...helpersOf(child)]);
}

/**
 * The groups above a group, itself included, that have a limit of memory now.
 * @param path below each hierarchy's root
 */
export function limitedGroups(path: string, hierarchies: readonly CgroupHierarchy[]): string[] {
	const found: string[] = [];
	for (let one = path; one !== "/" && one !== "."; one = dirname(one)) if (limitOf(one, hierarchies) < NO_LIMIT) found.push(one);
	return found;
}

function limitOf(path: string, hierarchies: readonly CgroupHierarchy[]): number {
	for (const { mountPoint, version } of hierarchies) {
		try {
			const text = readFileSync(join(mountPoint, path, FILES[version].limit), "utf8").trim();
			return text === "max" ? NO_LIMIT : Number(text);
		} catch {
			continue;
		}
	}
	return NO_LIMIT;
}

const FILES = {
	1: { usage: "memory.usage_in_bytes", limit: "memory.limit_in_bytes" },
	2: { usage: "memory.current", limit: "memory.max" },
} as const;

/** Watches a control group, in whatever hierarchy counts memory; its pressure is in that of version 2. */
export function watchGroup(path: string, hierarchies: readonly CgroupHierarchy[]): Watch {
	const second = hierarchies.find(({ version }) => version === 2);
	const counts = hierarchies.find(({ version, controllers }) => version === 1 && controllers.includes("memory")) ?? second;
	const file = (hierarchy: CgroupHierarchy | undefined, name: string): string =>
		hierarchy === undefined ? "" : join(hierarchy.mountPoint, path, name);
	return {
		ids: [
			memoryWatchGroup({
				usage: file(counts, FILES[counts?.version ?? 2].usage),
				limit: file(counts, FILES[counts?.version ?? 2].limit),
				stat: file(counts, "memory.stat"),
				pressure: file(second, "memory.pressure"),
			}),
		],
	};
}

/** Ends a watch. */
export function unwatch({ ids }: Watch): void {
	for (const id of ids) memoryUnwatch(id);
}

/** Reads all that is watched, on a thread of its own. @throws SystemError: EAGAIN */
export async function sampleMemory(detail: Detail = {}): Promise<MemorySample> {
	return new MemorySample(await memorySample(detail));
}

/**
 * Calls back when tasks of the node have waited for memory for `stallMs` within `windowMs`.
 * @returns how to end it; undefined where the kernel does not tell, or not us
 */
export function onPressure(stallMs: number, windowMs: number, callback: () => void): (() => void) | undefined {
	try {
		return pressureWatch(NODE_PRESSURE, stallMs * MICROS_PER_MS, windowMs * MICROS_PER_MS, callback);
	} catch {
		return undefined;
	}
}

const MICROS_PER_MS = 1000;
