/** How much memory processes, control groups and the machine use, read in one call on a thread of its own. */

import { addon, checked, MAX_INT, plain, whole } from "./load.ts";

/** What is asked of each process beside its pages: both cost much more than these. */
export interface Detail {
	/** Its proportional share and its highest use: the kernel walks its page tables for it. */
	readonly share?: boolean | undefined;
	/** The CPU time of all its threads. */
	readonly time?: boolean | undefined;
}

/** What a sample has of each process, in its order, and behind it what was asked for: time first. */
const PAGE_COLUMNS = ["id", "residentBytes", "sharedBytes"] as const;
const TIME_COLUMNS = ["ticks"] as const;
const SHARE_COLUMNS = ["shareBytes", "peakBytes"] as const;
/** What it has of each group. */
const GROUP_COLUMNS = ["id", "usageBytes", "limitBytes", "inactiveBytes", "stalledPercent"] as const;

/**
 * - `sharedBytes`: what of the resident ones is pages of files or shared memory
 * - `ticks`: clock ticks, 100 a second
 */
export type ProcessColumn = (typeof PAGE_COLUMNS | typeof TIME_COLUMNS | typeof SHARE_COLUMNS)[number];

/**
 * - `limitBytes`: Infinity for none
 * - `inactiveBytes`: what of the use is pages of files that nobody has used lately
 * - `stalledPercent`: of the last ten seconds in which a task waited for memory
 */
export type GroupColumn = (typeof GROUP_COLUMNS)[number];

/** One sample: rows of processes and of groups, in the order in which they were watched. NaN: unknown, not asked for, or gone. */
export class RawSample {
	readonly #numbers: Float64Array;
	readonly #columns: readonly ProcessColumn[];
	readonly processes: number;
	readonly groups: number;

	constructor(numbers: Float64Array, { share = false, time = false }: Detail) {
		this.#numbers = numbers;
		this.#columns = COLUMNS[(share ? SHARE : 0) | (time ? TIME : 0)] ?? PAGE_COLUMNS;
		this.processes = this.#header(5);
		this.groups = this.#header(6);
	}

	get totalBytes(): number {
		return this.#header(0);
	}
	get availableBytes(): number {
		return this.#header(1);
	}
	/** Percent of the last ten seconds in which some, or all, tasks of the machine waited for memory. */
	get somePercent(): number {
		return this.#header(2);
	}
	get fullPercent(): number {
		return this.#header(3);
	}
	/** The same for some tasks, summed up since the machine's start. */
	get someMicros(): number {
		return this.#header(4);
	}

	#header(index: number): number {
		return this.#numbers[index] ?? NaN;
	}

	/** One number of a process. */
	process(column: ProcessColumn, row: number): number {
		const index = this.#columns.indexOf(column);
		return index < 0 ? NaN : (this.#numbers[HEADER_NUMBERS + index * this.processes + row] ?? NaN);
	}

	/** One number of a group. */
	group(column: GroupColumn, row: number): number {
		const first = HEADER_NUMBERS + this.#columns.length * this.processes;
		return this.#numbers[first + GROUP_COLUMNS.indexOf(column) * this.groups + row] ?? NaN;
	}

	/** The row of a watched process; undefined when it was not watched. */
	processRow(id: number): number | undefined {
		return this.#rowOf(id, HEADER_NUMBERS, this.processes);
	}

	/** The row of a watched group; undefined when it was not watched. */
	groupRow(id: number): number | undefined {
		return this.#rowOf(id, HEADER_NUMBERS + this.#columns.length * this.processes, this.groups);
	}

	/** Ids go up from row to row. */
	#rowOf(id: number, first: number, rows: number): number | undefined {
		let [low, high] = [0, rows - 1];
		while (low <= high) {
			const middle = (low + high) >> 1;
			const found = this.#numbers[first + middle] ?? 0;
			if (found === id) return middle;
			if (found < id) low = middle + 1;
			else high = middle - 1;
		}
		return undefined;
	}
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
/** The columns of processes, by what was asked for. */
const COLUMNS: readonly (readonly ProcessColumn[])[] = [
	PAGE_COLUMNS,
	[...PAGE_COLUMNS, ...SHARE_COLUMNS],
	[...PAGE_COLUMNS, ...TIME_COLUMNS],
	[...PAGE_COLUMNS, ...TIME_COLUMNS, ...SHARE_COLUMNS],
];

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
	return new RawSample(numbers, { share, time });
}
