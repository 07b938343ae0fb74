/**
 * The volumes of a pod: what its containers mount from the host is brought into the VM, once for all containers that share it. Copies last
 * as long as the pod; those of configuration are kept up to date.
 */

import { lstat, stat, statfs } from "node:fs/promises";

import { bindMounts, FOREIGN_PROPAGATION, guestContainerVolume, guestVolume, SHM_PLACE } from "../agent/guest-spec.ts";
import type { GuestSource } from "../agent/guest-spec.ts";
import type { OciMount, OciSpec } from "../agent/oci-spec.ts";
import { emptyDirStorage } from "../agent/storages.ts";
import type { StorageRequest } from "../agent/storages.ts";
import { errnoOf, explain, messageOf, ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Config } from "../config/schema.ts";
import { mountTable } from "../host/mounts.ts";
import { measureTree, missing, readTree, tooLarge } from "../storage/folder-tree.ts";
import type { TreeOptions } from "../storage/folder-tree.ts";
import { isKernelType, planVolume } from "../storage/volume-plan.ts";
import type { SourceType, TableEntry, VolumePlan } from "../storage/volume-plan.ts";
import { LiveVolume } from "./live-volume.ts";
import type { Machine } from "./machine.ts";
import { ChangeSink, copyTree, CopyFileSink } from "./volume-copy.ts";

const MIB = 1024 * 1024;
const MODE_BITS = 0o7777;
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

/** What the volumes need of their pod. */
export interface VolumesHost {
	readonly config: Config;
	readonly log: Log;
	/** Writes the journal. @throws ShimError `journal.write` */
	save(): void;
}

/** A container's volumes, ready to be mounted. */
export interface ContainerVolumes {
	/** Where they lie in the guest, by destination. */
	readonly sources: ReadonlyMap<string, GuestSource>;
	/** What the agent makes before the container. */
	readonly storages: readonly StorageRequest[];
}

/** One mount with what was decided on it. */
interface Planned {
	readonly mount: OciMount;
	readonly plan: VolumePlan;
}

interface Work {
	readonly containerId: string;
	readonly machine: Machine;
	readonly tree: Omit<TreeOptions, "path">;
	readonly signal: AbortSignal;
}

async function sourceType(path: string): Promise<SourceType> {
	try {
		const stats = await stat(path);
		if (stats.isFile()) return "file";
		if (stats.isDirectory()) return "folder";
		if (stats.isSocket()) return "socket";
		if (stats.isFIFO()) return "fifo";
		return stats.isBlockDevice() ? "block-device" : "character-device";
	} catch (error) {
		if (errnoOf(error) === "ENOENT" || errnoOf(error) === "ENOTDIR") return "missing";
		throw new ShimError("volume.copy", `the volume ${path} can't be looked at: ${messageOf(error)}`, { cause: error });
	}
}

async function isAtomic(path: string): Promise<boolean> {
	return await lstat(`${path}/..data`).then(
		(stats) => stats.isSymbolicLink(),
		() => false,
	);
}

/** The volumes of one pod. */
export class PodVolumes {
	readonly #host: VolumesHost;
	/** Shared copies by key. */
	readonly #shared = new Map<string, VolumeRecord>();
	readonly #live = new Map<string, LiveVolume>();
	#closed = false;

	constructor(host: VolumesHost, records: readonly VolumeRecord[] = []) {
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

	/**
	 * Brings the volumes of a container into the guest, as far as they are not there.
	 * @param taken destinations that others have brought
	 * @throws ShimError `volume.missing`, `volume.too-large`, `volume.copy`, `spec.unsupported`; each names the mount
	 */
	async prepare(
		container: { readonly id: string; readonly spec: OciSpec },
		taken: ReadonlyMap<string, GuestSource>,
		machine: Machine,
		signal: AbortSignal,
	): Promise<ContainerVolumes> {
		const table = await mountTable();
		const sources = new Map<string, GuestSource>(taken);
		const storages = new Map<string, StorageRequest>();
		const work: Work = { containerId: container.id, machine, tree: this.#treeOptions(machine, table), signal };
		const mounts = bindMounts(container.spec).filter(({ destination }) => !taken.has(destination));
		for (const { mount, plan } of await this.#plan(mounts, table)) {
			const { destination } = mount;
			try {
				const source = await this.#bring(plan, destination, work, storages);
				sources.set(destination, source);
			} catch (error) {
				if (!(error instanceof ShimError) || error.message.startsWith("mount ")) throw error;
				throw new ShimError(error.reason, `mount ${destination}: ${error.message}`, { cause: error, remedy: error.remedy });
			}
			if (mount.options?.some((option) => FOREIGN_PROPAGATION.has(option)) === true)
				this.#host.log.warn("mounts do not propagate between the node and a VM", { container: container.id, mount: destination });
		}
		return { sources, storages: [...storages.values()] };
	}

	/** Decides on all mounts before anything is brought. The pod's own /dev/shm is none of the volumes. */
	async #plan(mounts: readonly OciMount[], table: readonly TableEntry[]): Promise<Planned[]> {
		const planned: Planned[] = [];
		for (const mount of mounts) {
			const source = mount.source ?? "";
			const readonly = (mount.options ?? []).some((option) => option === "ro" || option === "rro");
			const type = await sourceType(source);
			const atomic = type === "folder" && (await isAtomic(source));
			const plan = planVolume({ destination: mount.destination, source, readonly, type, atomic }, table);
			if (mount.destination === SHM_PLACE && plan.kind !== "memory" && plan.kind !== "scratch") continue;
			planned.push({ mount, plan });
		}
		return planned;
	}

	async #bring(plan: VolumePlan, destination: string, work: Work, storages: Map<string, StorageRequest>): Promise<GuestSource> {
		switch (plan.kind) {
			case "missing":
				throw missing(plan.path);
			case "refused":
				throw new ShimError("spec.unsupported", `mount ${destination}: its source ${plan.why}`, { remedy: plan.remedy });
			case "memory":
			case "scratch": {
				const { path, sub } = plan;
				const volume = guestVolume(path);
				if (!storages.has(path)) storages.set(path, await emptyDir(plan.kind, path, volume));
				return below(volume, sub, work.machine);
			}
			case "live":
				await this.#bringLive(plan.path, work);
				return { path: guestVolume(plan.path) };
			case "copy":
				return plan.owner === "pod" ? await this.#bringShared(plan.path, plan.key, work) : await this.#bringOwn(plan.path, work);
		}
	}

	async #bringLive(path: string, work: Work): Promise<void> {
		if (this.#live.has(path) && this.#shared.get(path)?.whole === true) return;
		this.#live.get(path)?.close();
		await this.#remember({ kind: "live", path, key: path, whole: false }, work, async () => {
			if (!work.machine.details.volumes)
				this.#host.log.warn("this guest agent can't remove files: keys that are deleted from a volume stay in the guest", { volume: path });
			await this.#remove(guestVolume(path), work.machine);
			const live = this.#newLive(path, work.machine, work.tree);
			await live.open(work.signal);
			if (this.#closed) live.close();
			else this.#live.set(path, live);
		});
	}

	#newLive(path: string, machine: Machine, tree: Omit<TreeOptions, "path">): LiveVolume {
		const { agent, details } = machine;
		return new LiveVolume({ path, volume: guestVolume(path), agent, changes: details.volumes, tree, log: this.#host.log });
	}

	/** One copy for all containers of the pod. A folder inside one that was copied earlier is that one's. */
	async #bringShared(path: string, key: string, work: Work): Promise<GuestSource> {
		const holder = this.#holderOf(key);
		if (holder !== undefined) return below(guestVolume(holder), key.slice(holder.length + 1), work.machine);
		await this.#remember({ kind: "copy", path, key, whole: false }, work, () => this.#copy(path, guestVolume(key), work));
		return { path: guestVolume(key) };
	}

	#holderOf(key: string): string | undefined {
		const whole = [...this.#shared.values()].filter((record) => record.kind === "copy" && record.whole);
		const found = whole.find((record) => record.key === key) ?? whole.find((record) => key.startsWith(`${record.key}/`));
		return found?.key;
	}

	async #bringOwn(path: string, work: Work): Promise<GuestSource> {
		const volume = guestContainerVolume(work.containerId, path);
		await this.#copy(path, volume, work);
		return { path: volume };
	}

	/** Enters a shared copy in the journal before it is made, and that it is whole after that; a failure leaves neither entry nor copy. */
	async #remember(record: VolumeRecord, work: Work, make: () => Promise<void>): Promise<void> {
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
	async #copy(path: string, volume: string, work: Work): Promise<void> {
		const { machine, signal } = work;
		const options = { ...work.tree, path, signal };
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
function below(volume: string, sub: string, machine: Machine): GuestSource {
	if (sub === "") return { path: volume };
	return machine.details.volumes ? { path: volume, sub } : { path: `${volume}/${sub}` };
}

/** The guest's own emptyDir with the owner, the mode and (in memory) the size that the node's has. */
async function emptyDir(kind: "memory" | "scratch", path: string, volume: string): Promise<StorageRequest> {
	try {
		const { mode, uid, gid } = await stat(path);
		const { blocks, bsize } = await statfs(path);
		return emptyDirStorage({ kind, volume, mode: mode & MODE_BITS, uid, gid, sizeBytes: kind === "memory" ? blocks * bsize : 0 });
	} catch (error) {
		if (errnoOf(error) === "ENOENT") throw missing(path);
		throw new ShimError("volume.copy", `the volume ${path} can't be looked at: ${messageOf(error)}`, { cause: error });
	}
}
