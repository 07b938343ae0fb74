/** The volumes of a pod: what its containers mount from the host is brought into the VM, once for all containers that share it. */

import { basename } from "node:path";

import { bindMounts, FOREIGN_PROPAGATION, guestOwnVolume } from "../agent/guest-spec.ts";
import type { GuestSource } from "../agent/guest-spec.ts";
import type { OciSpec } from "../agent/oci-spec.ts";
import { diskStorage, emptyDirDiskStorage, shareStorage } from "../agent/storages.ts";
import type { DeviceRequest, StorageRequest } from "../agent/storages.ts";
import { messageOf, ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Config } from "../config/schema.ts";
import { diskAt } from "../host/disks.ts";
import { mountTable } from "../host/mounts.ts";
import type { DirectVolume } from "../storage/direct-volume.ts";
import { missing } from "../storage/folder-tree.ts";
import type { TableEntry } from "../storage/volume-plan.ts";
import { blockVolumes } from "./block-volumes.ts";
import { emptyDirLimits, requireEmptyDirs } from "./empty-dir-limits.ts";
import { EmptyDirs } from "./empty-dirs.ts";
import type { EmptyDirRecord, EmptyDirsHost } from "./empty-dirs.ts";
import { hugePageBytes } from "./huge-pages.ts";
import type { Machine } from "./machine.ts";
import { placeIn, VolumeCopies } from "./volume-copies.ts";
import type { VolumeRecord } from "./volume-copies.ts";
import { VolumeDisks } from "./volume-disks.ts";
import type { DiskRecord } from "./volume-disks.ts";
import { emptyDir, naming, planMounts } from "./volume-look.ts";
import type { EmptyDirKind, PlannedMount } from "./volume-look.ts";
import { VolumeShares } from "./volume-shares.ts";
import type { ShareRecord, SharesHost } from "./volume-shares.ts";

/** What the journal has of a pod's volumes. */
export interface VolumeRecords {
	readonly volumes: readonly VolumeRecord[];
	readonly disks: readonly DiskRecord[];
	readonly shares: readonly ShareRecord[];
	readonly emptyDirs: readonly EmptyDirRecord[];
}

/** What the volumes need of their pod. */
export interface VolumesHost extends SharesHost, EmptyDirsHost {
	readonly config: Config;
	readonly log: Log;
	/** The pod has a writable disk that its guest has put a file system on. */
	readonly hasScratch: boolean;
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
	/** What emptyDirs shall hold at most, in bytes, by their names. */
	readonly limits: ReadonlyMap<string, number>;
	/** The node's mounts. */
	readonly table: readonly TableEntry[];
	readonly signal: AbortSignal;
}

/** Where the guest mounts a volume of its own, of a disk or of a share. */
const placeOf = (path: string, { details }: Machine): string => guestOwnVolume(path, details.mounts);

/** The volumes of one pod. */
export class PodVolumes {
	readonly #host: VolumesHost;
	/** Copies of the node's folders and files. */
	readonly copies: VolumeCopies;
	/** Disks of the node that containers use. */
	readonly disks: VolumeDisks;
	/** Folders of the node that the VM shares. */
	readonly shares: VolumeShares;
	/** emptyDirs that have a disk. */
	readonly emptyDirs: EmptyDirs;
	constructor(host: VolumesHost, records: Partial<VolumeRecords> = {}) {
		this.#host = host;
		this.copies = new VolumeCopies(host, records.volumes);
		this.disks = new VolumeDisks(host, records.disks);
		this.shares = new VolumeShares(host, records.shares);
		this.emptyDirs = new EmptyDirs(host, this.disks, records.emptyDirs);
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

	/** True while the VM has disks or folders of the node itself, which others may want as soon as the pod has gone. */
	get holdNode(): boolean {
		return this.disks.ofContainers || this.shares.record().length > 0;
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
		const sources = new Map<string, GuestSource>(taken);
		const storages = new Map<string, StorageRequest>();
		const pagesReserved = machine.details.hugepages && hugePageBytes(container.spec.linux?.resources ?? {}) > 0;
		const limits = emptyDirLimits(container.spec.annotations ?? {});
		const mounts = bindMounts(container.spec).filter(({ destination }) => !taken.has(destination));
		// The node's mounts grow with its pods: they are read for those alone who mount something of it.
		const table = mounts.length === 0 ? [] : await mountTable();
		await requireEmptyDirs(
			limits,
			bindMounts(container.spec).map(({ source }) => source ?? ""),
		);
		const work: Work = { containerId: container.id, machine, pagesReserved, limits, table, signal };
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
				if (!storages.has(path)) storages.set(path, await this.#bringEmpty(plan.kind, path, work));
				return placeIn(placeOf(path, work.machine), sub, work.machine);
			}
			case "direct": {
				const { path, sub } = plan;
				if (!storages.has(path) && direct !== undefined) storages.set(path, await this.#bringDirect(path, direct, work));
				return placeIn(placeOf(path, work.machine), sub, work.machine);
			}
			case "share": {
				const { path, readonly } = plan;
				const tag = await this.shares.use(path, readonly, work.containerId, work.machine, work.signal);
				const volume = placeOf(`${tag} ${path}`, work.machine);
				storages.set(volume, shareStorage(volume, tag));
				return { path: volume };
			}
			case "live":
				return await this.copies.bringLive(plan.path, work);
			case "copy":
				return plan.owner === "pod"
					? await this.copies.bringShared(plan.path, plan.key, work)
					: await this.copies.bringOwn(plan.path, work);
		}
	}

	/** An emptyDir that the guest makes; one that is not in memory gets a disk, where the guest can make a file system on it. */
	async #bringEmpty(kind: EmptyDirKind, path: string, work: Work): Promise<StorageRequest> {
		const storage = await emptyDir(kind, path, placeOf(path, work.machine), work.pagesReserved);
		if (kind !== "scratch") return storage;
		const limitBytes = work.limits.get(basename(path));
		if (!this.#host.hasScratch) {
			if (limitBytes !== undefined)
				this.#host.log.warn("the limit of an emptyDir does not hold: it is in the VM's memory", { volume: path });
			return storage;
		}
		const source = await this.emptyDirs.use(path, limitBytes, work.machine, work.signal);
		return source === undefined ? storage : emptyDirDiskStorage(storage, source);
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
		return diskStorage({ volume: placeOf(path, machine), source, fstype, options, group });
	}
}
