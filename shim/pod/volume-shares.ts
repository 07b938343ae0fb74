/**
 * Folders of the node that a pod's VM shares by virtio-fs, where the operator allows it: one virtiofsd and one device for each, however many
 * containers use it. As with disks, the journal knows of them from before they are until after they were.
 */

import { mkdir, rmdir } from "node:fs/promises";

import { withDeadline } from "../base/deadline.ts";
import { explain, messageOf, ShimError } from "../base/errors.ts";
import { Scope } from "../base/scope.ts";
import { mountIn, unmount } from "../host/mounts.ts";
import type { HostCgroup } from "../host/cgroups.ts";
import { endShareDaemons, findShareDaemons, launchShareDaemon } from "../vmm/share-daemon.ts";
import type { Machine } from "./machine.ts";
import type { DisksHost } from "./volume-disks.ts";

/** A shared folder as the journal has it. */
export interface ShareRecord {
	/** The VMM's name of the device, and the guest's of the file system. */
	readonly id: string;
	readonly path: string;
	readonly readonly: boolean;
	/** The virtiofsd; null before it is there. */
	readonly process: { readonly pid: number; readonly startTime: string } | null;
	/** The VM has it. */
	readonly plugged: boolean;
	/** Containers that use it. */
	readonly users: readonly string[];
}

/** What the shares need of their pod. */
export interface SharesHost extends DisksHost {
	/** The pod's. */
	readonly folder: string;
	/** Where the VMM's processes belong. */
	readonly cgroup: HostCgroup | undefined;
}

const QUEUE_SIZE = 1024;
const LEAVE_MS = 5_000;
const FOLDER_MODE = 0o700;

/** The shared folders of one pod. Calls run one at a time. */
export class VolumeShares {
	readonly #host: SharesHost;
	readonly #shares = new Map<string, ShareRecord>();

	constructor(host: SharesHost, records: readonly ShareRecord[] = []) {
		this.#host = host;
		for (const record of records) this.#shares.set(keyOf(record), record);
	}

	/** What the journal keeps. */
	record(): ShareRecord[] {
		return [...this.#shares.values()];
	}

	/** Containers that may hold what the guest has not written yet. */
	writers(): string[] {
		return [...new Set(this.record().flatMap(({ readonly, users }) => (readonly ? [] : users)))];
	}

	/**
	 * Shares a folder with the VM for a container, unless that is so already.
	 * @param readonly the VM can't write there, whatever runs in it
	 * @returns the file system's tag in the guest
	 * @throws ShimError `volume.share`, `vmm.api`
	 */
	async use(path: string, readonly: boolean, containerId: string, machine: Machine, signal: AbortSignal): Promise<string> {
		const known = this.#shares.get(keyOf({ path, readonly }));
		if (known === undefined) return await this.#share(path, readonly, containerId, machine, signal);
		if (!known.users.includes(containerId)) this.#keep({ ...known, users: [...known.users, containerId] });
		return known.id;
	}

	async #share(path: string, readonly: boolean, containerId: string, machine: Machine, signal: AbortSignal): Promise<string> {
		const { config, folder, log, cgroup } = this.#host;
		const id = `share${this.#host.nextNumber()}`;
		let record: ShareRecord = { id, path, readonly, process: null, plugged: false, users: [containerId] };
		try {
			this.#keep(record);
			if (readonly) await this.#makeReadonlyView(record);
			const source = this.#source(record);
			const socket = this.#socket(id);
			const daemon = await launchShareDaemon({ program: config.storage.virtiofsd, source, socket, folder, cgroup });
			record = { ...record, process: { pid: daemon.pid, startTime: daemon.startTime } };
			this.#keep(record);
			const call = { timeoutMs: config.timeouts.vmm_call_ms, signal };
			const plugging = machine.vmm.client.addFs({ id, tag: id, socket, num_queues: 1, queue_size: QUEUE_SIZE }, call);
			plugging.catch(() => undefined);
			const failed = daemon.ended.then((words) => {
				throw new ShimError("volume.share", `${config.storage.virtiofsd} of ${path} has ended: ${words}`);
			});
			failed.catch(() => undefined);
			await Promise.race([plugging, failed]);
			this.#keep({ ...record, plugged: true });
			log.info("folder shared with the VM", { path, readonly, share: id });
			return id;
		} catch (error) {
			await this.#end(record, machine);
			throw error;
		}
	}

	/** A mount of the folder that takes no writes, in the pod's folder: the guest can't get round it. */
	async #makeReadonlyView({ id, path }: ShareRecord): Promise<void> {
		const place = this.#view(id);
		await mkdir(place, { mode: FOLDER_MODE });
		// Unmounted by `#end`, or with the pod's folder.
		await mountIn(new Scope(`share ${id}`), { type: "bind", source: path, options: ["bind", "ro"] }, place);
	}

	/** What the virtiofsd serves. */
	#source({ id, path, readonly }: ShareRecord): string {
		return readonly ? this.#view(id) : path;
	}

	#socket(id: string): string {
		return `${this.#host.folder}/${id}.sock`;
	}

	#view(id: string): string {
		return `${this.#host.folder}/${id}`;
	}

	#keep(record: ShareRecord): void {
		this.#shares.set(keyOf(record), record);
		this.#host.save();
	}

	/** A container uses no shared folder any more. @param machine undefined when there is no VM any more */
	async release(containerId: string, machine: Machine | undefined): Promise<void> {
		await this.#keepUsers((user) => user !== containerId, machine);
	}

	/** After a restart of snpd: what was shared for containers that are no more, or half, goes. */
	async resume(containers: ReadonlySet<string>, machine: Machine): Promise<void> {
		await this.#keepUsers((user) => containers.has(user), machine);
	}

	/** Ends every virtiofsd; for a pod whose VM is gone. */
	async close(): Promise<void> {
		for (const record of this.record()) await this.#end(record, undefined);
	}

	async #keepUsers(keeps: (user: string) => boolean, machine: Machine | undefined): Promise<void> {
		for (const record of this.record()) {
			const users = record.users.filter(keeps);
			if (users.length === record.users.length && record.plugged) continue;
			this.#shares.set(keyOf(record), { ...record, users });
			if (users.length === 0 || !record.plugged) await this.#end(record, machine);
		}
	}

	/** Takes the device out of the VM, ends its virtiofsd, removes what it had in the pod's folder. */
	async #end(record: ShareRecord, machine: Machine | undefined): Promise<void> {
		const { log, config, folder } = this.#host;
		const { id, process } = record;
		const failed = (error: unknown): void => log.warn("a shared folder is not given back in whole", { share: id, error: explain(error) });
		if (machine !== undefined && process !== null) {
			const ask = (): Promise<void> => machine.vmm.client.removeDevice(id, { timeoutMs: config.timeouts.vmm_call_ms });
			await machine.removals
				.remove(id, ask, { timeoutMs: LEAVE_MS, log })
				.catch((error: unknown) => log.debug("a shared folder is not in the VM", { share: id, error: messageOf(error) }));
		}
		const wait = { what: `the end of the virtiofsd of ${record.path}`, timeoutMs: LEAVE_MS };
		// One that was started just before snpd ended is in no journal yet.
		const processes = () => (process === null ? findShareDaemons(folder, this.#source(record)) : [process]);
		await withDeadline(wait, async () => await endShareDaemons(processes(), this.#socket(id))).catch(failed);
		if (record.readonly) {
			await unmount(this.#view(id)).catch(failed);
			await rmdir(this.#view(id)).catch(() => undefined);
		}
		this.#shares.delete(keyOf(record));
		try {
			this.#host.save();
		} catch (error) {
			failed(error);
		}
	}
}

const keyOf = ({ path, readonly }: { readonly path: string; readonly readonly: boolean }): string => `${readonly ? "ro" : "rw"} ${path}`;
