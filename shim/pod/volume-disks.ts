/**
 * Disks of the node that a pod's VM has for volumes: one for each, however many containers use it. It is plugged in for the first and pulled
 * after the last, and the journal knows of it from before the one until after the other.
 */

import { deviceSource } from "../agent/storages.ts";
import { messageOf, ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Config } from "../config/schema.ts";
import { fileKey, usedByNode } from "../host/disks.ts";
import type { HostDisk } from "../host/disks.ts";
import { isNoSlot } from "../vmm/api-error.ts";
import { planDisk } from "../vmm/plan.ts";
import type { Machine } from "./machine.ts";

/** A disk as the journal has it. */
export interface DiskRecord {
	/** The VMM's name of it. */
	readonly id: string;
	/** Which disk of the node it is, see `HostDisk`. */
	readonly key: string;
	readonly readonly: boolean;
	/** Where the guest's agent finds it; empty until it is plugged in. */
	readonly source: string;
	/** Containers that use it, or the pod itself. */
	readonly users: readonly string[];
}

/** The user of a disk that stays as long as the VM, and whose content ends with it. */
export const POD = "";

/** What the disks need of their pod. */
export interface DisksHost {
	readonly config: Config;
	readonly log: Log;
	/** PCI segments of the VM. */
	readonly pciSegments: number;
	nextNumber(): number;
	/** Writes the journal. @throws ShimError `journal.write` */
	save(): void;
}

/** With one PCI segment alone, how many of its slots the pod's own disks may take: what they are for can do without, and other disks can't. */
const POD_DISKS_ON_FIRST = 8;
const ON_FIRST = /^[0-9a-f]{2}$/u;
/** How long a guest may take to let a disk go; the release of a container is bounded by twice that. */
const LEAVE_MS = 5_000;
/** The VMM's words when another process has the disk (Cloud Hypervisor v53: locks of open file descriptions). */
const LOCKED = /already locked|\block\b/iu;

/** The disks of one pod's volumes. Calls run one at a time: they belong to calls that change the pod. */
export class VolumeDisks {
	readonly #host: DisksHost;
	/** By their key. */
	readonly #disks = new Map<string, DiskRecord>();

	constructor(host: DisksHost, records: readonly DiskRecord[] = []) {
		this.#host = host;
		for (const record of records) this.#disks.set(record.key, record);
	}

	/** What the journal keeps. */
	record(): DiskRecord[] {
		return [...this.#disks.values()];
	}

	/** True while containers have disks of the node in the VM, not the pod alone its own. */
	get ofContainers(): boolean {
		return this.record().some(({ users }) => users.some((user) => user !== POD));
	}

	/** Containers whose disks may hold what the guest has not written yet. */
	writers(): string[] {
		return [...new Set(this.record().flatMap(({ readonly, users }) => (readonly ? [] : users.filter((user) => user !== POD))))];
	}

	/** Where the guest's agent finds a plain file that is plugged in; undefined for others. @param file without symbolic links */
	sourceOf(file: string): string | undefined {
		const source = this.#disks.get(fileKey(file))?.source ?? "";
		return source === "" ? undefined : source;
	}

	/**
	 * Plugs a disk in for a container, unless the pod has it.
	 * @param disk its `readonly`: the pod may not write there
	 * @returns where the guest's agent finds it
	 * @throws ShimError `volume.busy`, `spec.unsupported`, `vmm.api`
	 */
	async use(disk: HostDisk, containerId: string, machine: Machine, signal: AbortSignal): Promise<string> {
		const known = this.#disks.get(disk.key);
		if (known === undefined) return await this.#plug(disk, containerId, machine, signal);
		if (known.readonly && !disk.readonly)
			throw new ShimError("spec.unsupported", `${disk.path} is in the pod read-only: a container can't write to it`, {
				remedy: "let all containers of the pod use the volume in one way",
			});
		if (!known.users.includes(containerId)) {
			this.#disks.set(disk.key, { ...known, users: [...known.users, containerId] });
			this.#host.save();
		}
		return known.source;
	}

	async #plug(disk: HostDisk, containerId: string, machine: Machine, signal: AbortSignal): Promise<string> {
		const { path, key, readonly } = disk;
		const { config } = this.#host;
		if (config.hypervisor.landlock)
			throw new ShimError("spec.unsupported", `${path} can't be plugged in: Landlock keeps the hypervisor from files that come later`, {
				remedy: "set hypervisor.landlock = false on nodes that serve block volumes",
			});
		if (await usedByNode(disk)) throw new ShimError("volume.busy", `${path} is mounted, or otherwise in use, on the node itself`);
		const record: DiskRecord = { id: `vol${this.#host.nextNumber()}`, key, readonly, source: "", users: [containerId] };
		this.#disks.set(key, record);
		try {
			this.#host.save();
			const source = await this.#add(record, path, machine, signal);
			this.#disks.set(key, { ...record, source });
			this.#host.save();
			this.#host.log.info("disk of a volume plugged in", { path, disk: record.id });
			return source;
		} catch (error) {
			await this.#pull(record, machine);
			throw error;
		}
	}

	/** The first PCI segment that a disk may be on. */
	#firstSegment({ users }: DiskRecord, segments: number): number {
		if (!users.includes(POD)) return 0;
		const onFirst = this.record().filter((disk) => disk.users.includes(POD) && ON_FIRST.test(disk.source)).length;
		return segments === 1 && onFirst < POD_DISKS_ON_FIRST ? 0 : 1;
	}

	/** Has the VMM take the disk, on the first PCI segment with room; the first one's slots go last, since others need them. */
	async #add(record: DiskRecord, path: string, machine: Machine, signal: AbortSignal): Promise<string> {
		const { id, readonly } = record;
		const { config, pciSegments } = this.#host;
		const segments = machine.details.pci ? pciSegments : 1;
		const call = { timeoutMs: config.timeouts.vmm_call_ms, signal };
		const first = this.#firstSegment(record, segments);
		for (let segment = segments - 1; segment >= first; segment--) {
			try {
				const device = await machine.vmm.client.addDisk(planDisk({ id, path, readonly, segment }), call);
				const source = deviceSource(device?.bdf ?? "", machine.details.pci);
				if (source !== undefined) return source;
				throw new ShimError("vmm.api", `the hypervisor put ${path} at ${device?.bdf ?? "no place"}, where the guest agent can't find it`);
			} catch (error) {
				if (!(error instanceof ShimError && isNoSlot(error.cause))) throw plugFailure(path, error);
			}
		}
		throw new ShimError("pod.slots-full", `the pod's VM has no PCI slot for ${path}`);
	}

	/** A container uses no disk any more; those that nobody uses are pulled out of the VM. @param machine undefined when there is no VM any more */
	async release(containerId: string, machine: Machine | undefined): Promise<void> {
		await this.#keepUsers((user) => user !== containerId, machine);
	}

	/** After a restart of snpd: what was plugged in for containers that are no more, or half, goes. */
	async resume(containers: ReadonlySet<string>, machine: Machine): Promise<void> {
		await this.#keepUsers((user) => user === POD || containers.has(user), machine);
	}

	async #keepUsers(keeps: (user: string) => boolean, machine: Machine | undefined): Promise<void> {
		for (const record of this.record()) {
			const users = record.users.filter(keeps);
			if (users.length === record.users.length && record.source !== "") continue;
			this.#disks.set(record.key, { ...record, users });
			if (users.length === 0 || record.source === "") await this.#pull(record, machine);
		}
	}

	/** What can't be pulled goes with the VM. */
	async #pull(record: DiskRecord, machine: Machine | undefined): Promise<void> {
		const { log, config } = this.#host;
		try {
			if (machine === undefined) return;
			const ask = (): Promise<void> => machine.vmm.client.removeDevice(record.id, { timeoutMs: config.timeouts.vmm_call_ms });
			await machine.removals.remove(record.id, ask, { timeoutMs: LEAVE_MS, log });
		} catch (error) {
			log.debug("a volume's disk is not in the VM", { disk: record.id, error: messageOf(error) });
		} finally {
			this.#disks.delete(record.key);
		}
		try {
			this.#host.save();
		} catch (error) {
			log.error("the journal is behind", error, { disk: record.id });
		}
	}
}

function plugFailure(path: string, error: unknown): unknown {
	if (!(error instanceof ShimError) || error.reason !== "vmm.api") return error;
	if (LOCKED.test(error.message)) return new ShimError("volume.busy", `${path} is in use by another VM of the node`, { cause: error });
	return new ShimError("vmm.api", `${path} can't be plugged in: ${error.message}`, { cause: error });
}
