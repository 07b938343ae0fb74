/**
 * The files of a snapshot (Cloud Hypervisor v53, docs/snapshot_restore.md): the VM's configuration, as text that may be changed before a restore, its memory, and
 * the state of all else. A restore takes paths from the configuration, sizes from the state.
 */

import type { LandlockConfig, VmConfig } from "./config-types.ts";

export const SNAPSHOT_CONFIG = "config.json";
export const SNAPSHOT_STATE = "state.json";
/** As long as the VM's memory; holes where a VM with shared memory never was. */
export const SNAPSHOT_MEMORY = "memory-ranges";

/** What a VM that is restored has of its own. */
export interface OwnParts {
	readonly vsock: string;
	/** Where the serial console goes, if the VM has one. */
	readonly serialFile: string | undefined;
	/** Files of its disks, by their ids. */
	readonly disks: Readonly<Record<string, string>>;
	readonly sharedMemory: boolean;
	readonly landlockRules: readonly LandlockConfig[] | undefined;
}

/**
 * A snapshot's configuration with the files of another VM in it; pure.
 * @param text `config.json` as the VMM wrote it
 * @throws Error when it is not the configuration of a VM with a vsock device, or has a disk for which there is no file
 */
export function ownConfig(text: string, own: OwnParts): string {
	const config = JSON.parse(text) as VmConfig | null;
	if (config?.vsock?.socket === undefined || config.memory === undefined)
		throw new Error("the snapshot's configuration has no vsock device, or no memory");
	config.vsock.socket = own.vsock;
	config.memory.shared = own.sharedMemory;
	if (config.serial?.mode === "File" && own.serialFile !== undefined) config.serial.file = own.serialFile;
	for (const disk of config.disks ?? []) {
		const path = disk.id !== undefined && Object.hasOwn(own.disks, disk.id) ? own.disks[disk.id] : undefined;
		if (path === undefined) throw new Error(`the snapshot has a disk ${disk.id ?? "without a name"}, for which there is no file`);
		disk.path = path;
	}
	if (own.landlockRules !== undefined) config.landlock_rules = own.landlockRules.map((rule) => ({ ...rule }));
	return JSON.stringify(config);
}
