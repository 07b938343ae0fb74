/** Copies of the node's folders and files in the guest: they last as long as the pod, or its container; those of configuration are kept up to date. */

import { guestContainerVolume, guestVolume } from "../agent/guest-spec.ts";
import type { GuestSource } from "../agent/guest-spec.ts";
import { explain, ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Config } from "../config/schema.ts";
import { measureTree, readTree, tooLarge } from "../storage/folder-tree.ts";
import type { TreeOptions } from "../storage/folder-tree.ts";
import { isKernelType } from "../storage/volume-plan.ts";
import type { TableEntry } from "../storage/volume-plan.ts";
import { LiveVolume } from "./live-volume.ts";
import type { Machine } from "./machine.ts";
import { ChangeSink, copyTree, CopyFileSink } from "./volume-copy.ts";

const MIB = 1024 * 1024;
/** Live volumes and shared copies of one pod. */
const MAX_VOLUMES = 1024;
/** How long the guest may take to remove a copy that failed. */
const UNDO_MS = 10_000;

/** A shared copy as the journal has it. */
export interface VolumeRecord {
	readonly kind: "live" | "copy";
	readonly path: string;
	/** What it is a copy of, see `planVolume`; the path itself for live ones. */
	readonly key: string;
	readonly whole: boolean;
}

/** What copies need of their pod. */
export interface CopiesHost {
	readonly config: Config;
	readonly log: Log;
	/** Writes the journal. @throws ShimError `journal.write` */
	save(): void;
}

/** For whom something is copied, and where. */
export interface CopyWork {
	readonly containerId: string;
	readonly machine: Machine;
	/** The node's mounts. */
	readonly table: readonly TableEntry[];
	readonly signal: AbortSignal;
}

/** The copies of one pod. Calls run one at a time. */
export class VolumeCopies {
	readonly #host: CopiesHost;
	/** Shared copies by key. */
	readonly #shared = new Map<string, VolumeRecord>();
	readonly #live = new Map<string, LiveVolume>();
	#closed = false;

	constructor(host: CopiesHost, records: readonly VolumeRecord[] = []) {
		this.#host = host;
		for (const record of records) this.#shared.set(record.key, record);
	}

	/** What the journal keeps. */
	record(): VolumeRecord[] {
		return [...this.#shared.values()];
	}

	/** Takes up, after a restart of snpd, what is kept up to date. */
	resume(machine: Machine): void {
		for (const record of this.#shared.values()) {
			if (record.kind !== "live" || !record.whole || this.#closed) continue;
			// Folders of configuration hold no mounts of others.
			const live = this.#newLive(record.path, machine, this.#treeOptions(machine, []));
			this.#live.set(record.key, live);
			live.resume();
		}
	}

	/** Ends the watching; what is in the guest goes with the VM. */
	close(): void {
		this.#closed = true;
		for (const live of this.#live.values()) live.close();
		this.#live.clear();
	}

	/** One copy for all containers of the pod, which follows every change. */
	async bringLive(path: string, work: CopyWork): Promise<GuestSource> {
		const source = { path: guestVolume(path) };
		if (this.#live.has(path) && this.#shared.get(path)?.whole === true) return source;
		this.#live.get(path)?.close();
		await this.#remember({ kind: "live", path, key: path, whole: false }, work, async () => {
			if (!work.machine.details.volumes)
				this.#host.log.warn("this guest agent can't remove files: keys that are deleted from a volume stay in the guest", { volume: path });
			await this.#remove(guestVolume(path), work.machine);
			const live = this.#newLive(path, work.machine, this.#treeOptions(work.machine, work.table));
			await live.open(work.signal);
			if (this.#closed) live.close();
			else this.#live.set(path, live);
		});
		return source;
	}

	#newLive(path: string, machine: Machine, tree: Omit<TreeOptions, "path">): LiveVolume {
		const { agent, details } = machine;
		return new LiveVolume({ path, volume: guestVolume(path), agent, changes: details.volumes, tree, log: this.#host.log });
	}

	/** One copy for all containers of the pod. A folder inside one that was copied earlier is that one's. */
	async bringShared(path: string, key: string, work: CopyWork): Promise<GuestSource> {
		const holder = this.#holderOf(key);
		if (holder !== undefined) return placeIn(guestVolume(holder), key.slice(holder.length + 1), work.machine);
		await this.#remember({ kind: "copy", path, key, whole: false }, work, () => this.#copy(path, guestVolume(key), work));
		return { path: guestVolume(key) };
	}

	#holderOf(key: string): string | undefined {
		const whole = [...this.#shared.values()].filter((record) => record.kind === "copy" && record.whole);
		const found = whole.find((record) => record.key === key) ?? whole.find((record) => key.startsWith(`${record.key}/`));
		return found?.key;
	}

	/** A copy for one container. */
	async bringOwn(path: string, work: CopyWork): Promise<GuestSource> {
		const volume = guestContainerVolume(work.containerId, path);
		await this.#copy(path, volume, work);
		return { path: volume };
	}

	/** Enters a shared copy in the journal before it is made, and that it is whole after that; a failure leaves neither entry nor copy. */
	async #remember(record: VolumeRecord, work: CopyWork, make: () => Promise<void>): Promise<void> {
		if (this.#shared.size >= MAX_VOLUMES && !this.#shared.has(record.key))
			throw new ShimError("volume.too-large", `the pod mounts more than ${MAX_VOLUMES} folders of the node`);
		this.#shared.set(record.key, record);
		this.#host.save();
		try {
			await make();
			this.#shared.set(record.key, { ...record, whole: true });
			this.#host.save();
		} catch (error) {
			this.#shared.delete(record.key);
			this.#live.get(record.key)?.close();
			this.#live.delete(record.key);
			await this.#remove(guestVolume(record.key), work.machine);
			throw error;
		}
	}

	/** Measures, then copies. What is there from an attempt that was cut off goes first. */
	async #copy(path: string, volume: string, work: CopyWork): Promise<void> {
		const { machine, signal } = work;
		const options = { ...this.#treeOptions(machine, work.table), path, signal };
		const size = await measureTree(options);
		if (!size.complete || size.bytes > options.maxBytes) throw tooLarge(path, size, options);
		await this.#remove(volume, machine);
		const { agent, details } = machine;
		const sink = details.volumes ? new ChangeSink(agent, volume, { signal }) : new CopyFileSink(agent, volume, { signal });
		try {
			const { entries, bytes, leftOut } = await copyTree(readTree(options), sink, Buffer.alloc(0));
			this.#host.log.info("volume copied", { volume: path, entries, bytes });
			if (leftOut.length > 0) this.#host.log.warn("a volume has what can't be copied", { volume: path, leftOut: leftOut.join(", ") });
		} catch (error) {
			await this.#remove(volume, machine);
			throw error;
		}
	}

	/** Removes a copy from the guest. What stays takes memory of a VM that the failed container may end anyway. */
	async #remove(volume: string, machine: Machine): Promise<void> {
		if (!machine.details.volumes) return;
		try {
			await machine.agent.changeVolume(volume, [{ path: Buffer.alloc(0), remove: {} }], { timeoutMs: UNDO_MS });
		} catch (error) {
			this.#host.log.warn("a part of a volume stays in the guest", { volume, error: explain(error) });
		}
	}

	#treeOptions(machine: Machine, table: readonly TableEntry[]): Omit<TreeOptions, "path"> {
		const { copy_max_mib, copy_max_entries } = this.#host.config.storage;
		return {
			maxBytes: copy_max_mib * MIB,
			maxEntries: copy_max_entries,
			kernelDevices: new Set(table.filter(({ type }) => isKernelType(type)).map(({ device }) => device)),
			hardLinks: machine.details.volumes,
		};
	}
}

/** A place in a volume: found by our agent, which leaves the volume through no link; for others it is a path like any. */
export function placeIn(volume: string, sub: string, machine: Machine): GuestSource {
	if (sub === "") return { path: volume };
	return machine.details.volumes ? { path: volume, sub } : { path: `${volume}/${sub}` };
}
