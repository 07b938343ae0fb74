/** How much memory processes, control groups and the machine use, read in one call on a thread of its own. */

import { addon, checked, MAX_INT, plain, whole } from "./load.ts";

/** What is asked of each process beside its pages: both cost much more than these. */
export interface Detail {
	/** Its proportional share and its highest use: the kernel walks its page tables for it. */
	readonly share?: boolean | undefined;
	/** The CPU time of all its threads. */
	readonly time?: boolean | undefined;
}

/** One sample. Columns of processes are of one length, those of groups too; rows in the order in which they were watched. NaN: unknown, or gone. */
export interface RawSample {
	readonly totalBytes: number;
	readonly availableBytes: number;
	/** Percent of the last ten seconds in which some, or all, tasks of the machine waited for memory. */
	readonly somePercent: number;
	readonly fullPercent: number;
	/** The same for some tasks, summed up since the machine's start. */
	readonly someMicros: number;
	readonly processIds: Float64Array;
	readonly residentBytes: Float64Array;
	/** What of them is pages of files or shared memory. */
	readonly sharedBytes: Float64Array;
	readonly shareBytes: Float64Array;
	readonly peakBytes: Float64Array;
	/** Clock ticks, 100 a second. */
	readonly ticks: Float64Array;
	readonly groupIds: Float64Array;
	readonly usageBytes: Float64Array;
	/** Infinity for none. */
	readonly limitBytes: Float64Array;
	/** What of the use is pages of files that nobody has used lately. */
	readonly inactiveBytes: Float64Array;
	readonly groupPercent: Float64Array;
}

/** Where a control group tells of its memory. */
export interface GroupFiles {
	readonly usage: string;
	readonly limit: string;
	/** memory.stat */
	readonly stat: string;
	/** memory.pressure, of version 2 */
	readonly pressure: string;
}

const HEADER_NUMBERS = 7;
const SHARE = 1;
const TIME = 2;

/**
 * Watches a process from now on: its number may go to another one later, of which nothing is told.
 * @returns its id in samples
 * @throws SystemError: ENOENT when there is no such process, EMFILE
 */
export function memoryWatch(pid: number): number {
	return checked(addon().memoryWatch(whole(pid, "pid", 1, MAX_INT)), "watch the memory of", String(pid));
}

/** Watches a control group by its files; an empty path, or a file that is not there, is unknown in samples. */
export function memoryWatchGroup(files: GroupFiles): number {
	const { usage, limit, stat, pressure } = files;
	return addon().memoryWatchGroup(plain(usage, "usage"), plain(limit, "limit"), plain(stat, "stat"), plain(pressure, "pressure"));
}

/** Ends the watch of a process or group, also during a sample. */
export function memoryUnwatch(id: number): void {
	addon().memoryUnwatch(whole(id, "id", 0, MAX_INT));
}

/**
 * Reads everything that is watched when it is called.
 * @throws SystemError: EAGAIN when there is no thread to be had
 */
export async function memorySample({ share = false, time = false }: Detail = {}): Promise<RawSample> {
	const numbers = await addon().memorySample((share ? SHARE : 0) | (time ? TIME : 0));
	if (typeof numbers === "number") throw new Error(`sampling memory: ${checked(numbers, "sample", "memory")}`);
	const [totalBytes = NaN, availableBytes = NaN, somePercent = NaN, fullPercent = NaN, someMicros = NaN, processes = 0, groups = 0] =
		numbers;
	let at = HEADER_NUMBERS;
	const column = (rows: number): Float64Array => numbers.subarray(at, (at += rows));
	return {
		totalBytes,
		availableBytes,
		somePercent,
		fullPercent,
		someMicros,
		processIds: column(processes),
		residentBytes: column(processes),
		sharedBytes: column(processes),
		shareBytes: column(processes),
		peakBytes: column(processes),
		ticks: column(processes),
		groupIds: column(groups),
		usageBytes: column(groups),
		limitBytes: column(groups),
		inactiveBytes: column(groups),
		groupPercent: column(groups),
	};
}
