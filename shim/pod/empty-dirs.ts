/**
 * emptyDirs on the node's disk: each is a sparse file in kubelet's own folder for the volume, so that kubelet sees what the pod has written and
 * evicts the pod at the volume's limit. The VM gets it as a disk that the guest encrypts, and keeps it as long as it lives.
 */

import { ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Config } from "../config/schema.ts";
import { diskAt } from "../host/disks.ts";
import { emptyDirFile, makeEmptyDirFile } from "../storage/empty-dir-file.ts";
import { removeScratchFile } from "../storage/scratch-file.ts";
import type { Machine } from "./machine.ts";
import { POD } from "./volume-disks.ts";
import type { VolumeDisks } from "./volume-disks.ts";

/** An emptyDir as the journal has it. */
export interface EmptyDirRecord {
	/** kubelet's folder. */
	readonly path: string;
	/** The disk's file; empty when the VM can't have a disk for it: the volume then lies on the pod's own. */
	readonly file: string;
}

/** What emptyDirs need of their pod. */
export interface EmptyDirsHost {
	readonly config: Config;
	readonly log: Log;
	/** Names the pod's files: nothing else on the node has it. */
	readonly owner: string;
	/** Writes the journal. @throws ShimError `journal.write` */
	save(): void;
}

const BYTES_PER_MIB = 1024 * 1024;

/** The emptyDirs of one pod that have a disk. Calls run one at a time. */
export class EmptyDirs {
	readonly #host: EmptyDirsHost;
	readonly #disks: VolumeDisks;
	/** By kubelet's folder. */
	readonly #known = new Map<string, EmptyDirRecord>();

	constructor(host: EmptyDirsHost, disks: VolumeDisks, records: readonly EmptyDirRecord[] = []) {
		this.#host = host;
		this.#disks = disks;
		for (const record of records) this.#known.set(record.path, record);
	}

	/** What the journal keeps. */
	record(): EmptyDirRecord[] {
		return [...this.#known.values()];
	}

	/**
	 * Plugs in the disk of an emptyDir, unless the pod has it.
	 * @param path kubelet's folder
	 * @param limitBytes what it shall hold at most, when that is known
	 * @returns where the guest's agent finds the disk; undefined for one that lies on the pod's writable disk
	 * @throws ShimError `volume.missing`, `storage.scratch`, `storage.full`, `vmm.api`
	 */
	async use(path: string, limitBytes: number | undefined, machine: Machine, signal: AbortSignal): Promise<string | undefined> {
		const known = this.#known.get(path);
		if (known?.file === "") return undefined;
		const plugged = known === undefined ? undefined : this.#disks.sourceOf(known.file);
		if (plugged !== undefined) return plugged;
		const { hypervisor, storage } = this.#host.config;
		if (hypervisor.landlock) return this.#without(path, "Landlock keeps the hypervisor from files that come later");
		const file = await emptyDirFile(path, this.#host.owner);
		this.#known.set(path, { path, file });
		try {
			this.#host.save();
			await makeEmptyDirFile(file, limitBytes, storage.empty_dir_mib * BYTES_PER_MIB);
			const disk = await diskAt(file);
			// Whoever can write to kubelet's folder can put something else there: a VM gets what was made, no device, and nothing that a link leads to.
			if (disk?.path !== file) throw new ShimError("volume.missing", `the file ${file} is gone, or is a link`);
			return await this.#disks.use(disk, POD, machine, signal);
		} catch (error) {
			await this.#remove(file);
			if (error instanceof ShimError && error.reason === "pod.slots-full") return this.#without(path, error.message);
			this.#known.delete(path);
			throw error;
		}
	}

	/** The VM has ended: its files go, and their space with them. */
	async end(): Promise<void> {
		for (const { file } of this.#known.values()) if (file !== "") await this.#remove(file);
	}

	#without(path: string, why: string): undefined {
		this.#known.set(path, { path, file: "" });
		this.#host.save();
		this.#host.log.warn("an emptyDir has no disk of its own: kubelet sees nothing of it, and its limit does not hold", {
			volume: path,
			why,
		});
		return undefined;
	}

	async #remove(file: string): Promise<void> {
		await removeScratchFile(file).catch((error: unknown) => this.#host.log.error("the file of an emptyDir stays", error, { file }));
	}
}
