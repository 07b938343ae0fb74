/** Where the controller reads: this machine, or what a test makes up. */

import { mountedHierarchies } from "../host/cgroups.ts";
import { limitedGroups, onPressure, sampleMemory, unwatch, watchGroup, watchProcess } from "../host/memory.ts";
import type { PlaceMemory, ProcessMemory, Watch } from "../host/memory.ts";

/** One sample of all that was watched when it was taken. See `MemorySample`. */
export interface Sample {
	readonly node: PlaceMemory;
	process(watch: Watch): ProcessMemory | undefined;
	group(watch: Watch): PlaceMemory | undefined;
}

/** What can be watched, and read. */
export interface MemorySource {
	/** @throws SystemError: EAGAIN */
	sample(detail: { readonly share?: boolean; readonly time?: boolean }): Promise<Sample>;
	/** @returns undefined when the process is gone @throws SystemError: EMFILE */
	watchProcess(pid: number, startTime: bigint): Watch | undefined;
	/** The groups above a group, itself included, that have a limit of memory now. */
	limitedGroups(path: string): readonly string[];
	watchGroup(path: string): Watch;
	unwatch(watch: Watch): void;
	/** @returns how to end it; undefined where the kernel does not tell */
	onPressure(callback: () => void): (() => void) | undefined;
}

/** Tasks that wait for so long within the window wake the controller; the window is one that the kernel takes of anybody. */
const STALL_MS = 200;
const STALL_WINDOW_MS = 2_000;

/** This machine. */
export const HOST: MemorySource = {
	sample: sampleMemory,
	watchProcess,
	limitedGroups: (path) => limitedGroups(path, mountedHierarchies()),
	watchGroup: (path) => watchGroup(path, mountedHierarchies()),
	unwatch,
	onPressure: (callback) => onPressure(STALL_MS, STALL_WINDOW_MS, callback),
};
