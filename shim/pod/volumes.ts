/**
 * The volumes of a pod: what its containers mount from the host is brought into the VM, once for all containers that share it. Copies last
 * as long as the pod; those of configuration are kept up to date.
 */

import { bindMounts, FOREIGN_PROPAGATION, guestContainerVolume, guestVolume } from "../agent/guest-spec.ts";
import type { GuestSource } from "../agent/guest-spec.ts";
import type { OciSpec } from "../agent/oci-spec.ts";
import { diskStorage, shareStorage } from "../agent/storages.ts";
import type { DeviceRequest, StorageRequest } from "../agent/storages.ts";
import { explain, messageOf, ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Config } from "../config/schema.ts";
import { diskAt } from "../host/disks.ts";
import { mountTable } from "../host/mounts.ts";
import type { DirectVolume } from "../storage/direct-volume.ts";
import { measureTree, missing, readTree, tooLarge } from "../storage/folder-tree.ts";
import type { TreeOptions } from "../storage/folder-tree.ts";
import { isKernelType } from "../storage/volume-plan.ts";
import type { TableEntry } from "../storage/volume-plan.ts";
import { blockVolumes } from "./block-volumes.ts";
import { hugePageBytes } from "./huge-pages.ts";
import { LiveVolume } from "./live-volume.ts";
import type { Machine } from "./machine.ts";
import { ChangeSink, copyTree, CopyFileSink } from "./volume-copy.ts";
import { VolumeDisks } from "./volume-disks.ts";
import type { DiskRecord } from "./volume-disks.ts";
import { emptyDir, naming, planMounts } from "./volume-look.ts";
import type { PlannedMount } from "./volume-look.ts";
import { VolumeShares } from "./volume-shares.ts";
import type { ShareRecord, SharesHost } from "./volume-shares.ts";

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

/** What the journal has of a pod's volumes. */
export interface VolumeRecords {
	readonly volumes: readonly VolumeRecord[];
	readonly disks: readonly DiskRecord[];
	readonly shares: readonly ShareRecord[];
}

/** What the volumes need of their pod. */
export interface VolumesHost extends SharesHost {
	readonly config: Config;
	readonly log: Log;
}

/** A container's volumes, ready to be mounted. */
export interface ContainerVolumes {
	/** Where they lie in the guest, by destination. */
	readonly sources: ReadonlyMap<string, GuestSource>;
	/** What the agent makes before the container. */
	readonly storages: readonly StorageRequest[];
	/** Block devices that the agent gives the container. */
	readonly devices: readonly DeviceRequest[];
}

interface Work {
	readonly containerId: string;
	readonly machine: Machine;
	/** Huge pages are reserved by the container's limits. */
	readonly pagesReserved: boolean;
	readonly tree: Omit<TreeOptions, "path">;
	readonly signal: AbortSignal;
}

/** The volumes of one pod. */
export class PodVolumes {
	readonly #host: VolumesHost;
	/** Shared copies by key. */
	readonly #shared = new Map<string, VolumeRecord>();
	readonly #live = new Map<string, LiveVolume>();
	/** Disks of the node that containers use. */
	readonly disks: VolumeDisks;
	/** Folders of the node that the VM shares. */
	readonly shares: VolumeShares;
	#closed = false;

	constructor(host: VolumesHost, records: Partial<VolumeRecords> = {}) {
		this.#host = host;
		this.disks = new VolumeDisks(host, records.disks);
		this.shares = new VolumeShares(host, records.shares);
		for (const record of records.volumes ?? []) this.#shared.set(record.key, record);
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

	/** A container uses no disk and no shared folder any more. @param machine undefined when there is no VM any more */
	async release(containerId: string, machine: Machine | undefined): Promise<void> {
		await this.disks.release(containerId, machine);
		await this.shares.release(containerId, machine);
	}

	/** After a restart of snpd: disks and shared folders of containers that are no more, or half, go. */
	async keepOnly(containers: ReadonlySet<string>, machine: Machine): Promise<void> {
		await this.disks.resume(containers, machine);
		await this.shares.resume(containers, machine);
	}

	/** Containers that may hold what is not on its disk yet. */
	writers(): string[] {
		return [...new Set([...this.disks.writers(), ...this.shares.writers()])];
	}

	/**
	 * Brings the volumes of a container into the guest, as far as they are not there.
	 * @param taken destinations that others have brought
	 * @throws ShimError `volume.missing`, `volume.too-large`, `volume.copy`, `volume.invalid`, `volume.busy`, `spec.unsupported`; each names the mount
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
		const pagesReserved = machine.details.hugepages && hugePageBytes(container.spec.linux?.resources ?? {}) > 0;
		const work: Work = { containerId: container.id, machine, pagesReserved, tree: this.#treeOptions(machine, table), signal };
		const mounts = bindMounts(container.spec).filter(({ destination }) => !taken.has(destination));
		for (const planned of await planMounts(mounts, table, this.#host.config.storage.share_folders)) {
			const { mount } = planned;
			const { destination } = mount;
			sources.set(destination, await naming(destination, () => this.#bring(planned, work, storages)));
			if (mount.options?.some((option) => FOREIGN_PROPAGATION.has(option)) === true)
				this.#host.log.warn("mounts do not propagate between the node and a VM", { container: container.id, mount: destination });
		}
		return { sources, storages: [...storages.values()], devices: await this.#devices(container.spec, work) };
	}

	/** Plugs in the block devices that a container asks for. */
	async #devices(spec: OciSpec, { containerId, machine, signal }: Work): Promise<DeviceRequest[]> {
		const devices: DeviceRequest[] = [];
		for (const { containerPath, disk } of await blockVolumes(spec)) {
			const id = await this.disks.use(disk, containerId, machine, signal);
			devices.push({ type: "blk", id, container_path: containerPath });
		}
		return devices;
	}

	async #bring({ mount, plan, direct }: PlannedMount, work: Work, storages: Map<string, StorageRequest>): Promise<GuestSource> {
		switch (plan.kind) {
			case "missing":
				throw missing(plan.path);
			case "refused":
				throw new ShimError("spec.unsupported", `mount ${mount.destination}: its source ${plan.why}`, { remedy: plan.remedy });
			case "memory":
			case "scratch":
			case "huge": {
				const { path, sub } = plan;
				if (!storages.has(path)) storages.set(path, await emptyDir(plan.kind, path, work.pagesReserved));
				return below(guestVolume(path), sub, work.machine);
			}
			case "direct": {
				const { path, sub } = plan;
				if (!storages.has(path) && direct !== undefined) storages.set(path, await this.#bringDirect(path, direct, work));
				return below(guestVolume(path), sub, work.machine);
			}
			case "share": {
				const { path, readonly } = plan;
				const tag = await this.shares.use(path, readonly, work.containerId, work.machine, work.signal);
				const volume = guestVolume(`${tag} ${path}`);
				storages.set(volume, shareStorage(volume, tag));
				return { path: volume };
			}
			case "live":
				await this.#bringLive(plan.path, work);
				return { path: guestVolume(plan.path) };
			case "copy":
				return plan.owner === "pod" ? await this.#bringShared(plan.path, plan.key, work) : await this.#bringOwn(plan.path, work);
		}
	}

	/** Plugs in a direct-assigned volume's disk. */
	async #bringDirect(path: string, direct: DirectVolume, { containerId, machine, signal }: Work): Promise<StorageRequest> {
		const { device, fstype, group } = direct;
		const found = await diskAt(device).catch((error: unknown) => {
			throw new ShimError("volume.copy", `the direct-assigned volume's device ${device} can't be looked at: ${messageOf(error)}`, {
				cause: error,
			});
		});
		if (found === undefined) throw new ShimError("volume.missing", `the direct-assigned volume's device ${device} is no disk of the node`);
		const readonly = direct.readonly || found.readonly;
		const source = await this.disks.use({ ...found, readonly }, containerId, machine, signal);
		const options = readonly && !direct.options.includes("ro") ? [...direct.options, "ro"] : direct.options;
		return diskStorage({ volume: guestVolume(path), source, fstype, options, group });
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
