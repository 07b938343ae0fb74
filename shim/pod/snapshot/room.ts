/** Room for templates beside the state of all pods: whoever has no room there starts no pod. */

import { statfsSync } from "node:fs";

import { ShimError } from "../../base/errors.ts";
import { spaceAt } from "../../host/filesystem.ts";

const MIB = 1024 * 1024;
/** Left for the journals of pods, their logs, and what comes while a template is being written. */
const RESERVE_MIB = 64;
const PART = 0.5;

/**
 * Sees to it that a VM's state can be written: it comes to less than all of the VM's memory.
 * @throws ShimError `storage.full`
 */
export async function requireRoom(stateDir: string, memoryMib: number): Promise<void> {
	const { totalBytes, freeBytes } = await spaceAt(stateDir);
	// A tmpfs without a bound tells of no blocks at all.
	if (totalBytes === 0 || freeBytes >= (memoryMib + RESERVE_MIB) * MIB) return;
	throw new ShimError(
		"storage.full",
		`no room for a template: ${stateDir} has ${Math.floor(freeBytes / MIB)} MiB free, its VM has ${memoryMib} MiB, and ${RESERVE_MIB} MiB are left for pods`,
		{ remedy: "make the file system of state_dir larger, or give pods VMs with less memory" },
	);
}

/** What all templates may take of the file system together, whatever the configuration allows: half of it. */
export function mostBytes(stateDir: string): number {
	const { blocks, bsize } = statfsSync(stateDir);
	return blocks === 0 ? Number.MAX_SAFE_INTEGER : Math.floor(PART * blocks * bsize);
}
