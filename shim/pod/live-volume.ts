/**
 * A folder of configuration (configMap, secret, projected, downward API) that the guest has a copy of, kept up to date. Kubernetes replaces such
 * a folder as a whole: a new timestamped folder, then the link `..data` renamed over the old one. The guest gets the same steps, so that
 * its readers never see a mix or a missing file.
 */

import { watch } from "node:fs";
import type { FSWatcher } from "node:fs";
import { lstat, readdir, readlink } from "node:fs/promises";

import type { AgentClient, VolumeEntry } from "../agent/client.ts";
import { errnoOf, messageOf, ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { missing, readTree } from "../storage/folder-tree.ts";
import type { Attributes, TreeOptions } from "../storage/folder-tree.ts";
import { ChangeSink, copyTree, CopyFileSink } from "./volume-copy.ts";

const DATA = "..data";
/** What the new link is called until it takes the old one's place. */
const NEXT = "..data_snp";
const TYPE_BITS = 0o170000;
const LINK_TYPE = 0o120000;
const MODE_BITS = 0o7777;
/** How often a folder may be replaced while it is read. */
const MAX_ATTEMPTS = 5;
/** Pauses between attempts after a failure; then the next change is waited for. */
const RETRY_MS: readonly number[] = [500, 1_000, 2_000, 5_000, 10_000, 30_000];
/** Names directly in the folder. */
const MAX_NAMES = 10_000;

/** What a live volume needs. */
export interface LiveVolumeOptions {
	/** The host's folder. */
	readonly path: string;
	/** The guest's folder. */
	readonly volume: string;
	readonly agent: AgentClient;
	/** False for an agent that can only copy: nothing is removed then. */
	readonly changes: boolean;
	readonly tree: Omit<TreeOptions, "path" | "signal">;
	readonly log: Log;
}

/** What lies directly in the host's folder. */
interface HostFolder extends Attributes {
	/** The timestamped folder that `..data` leads to; undefined when there is none. */
	readonly data: string | undefined;
	/** Other links by name. */
	readonly links: ReadonlyMap<string, string>;
	/** Plain files and folders that are no timestamped ones. */
	readonly others: readonly string[];
}

const isLink = (entry: VolumeEntry): boolean => (entry.mode & TYPE_BITS) === LINK_TYPE;
const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString();

async function readHost(path: string): Promise<HostFolder> {
	const stats = await lstat(path);
	const entries = await readdir(path, { withFileTypes: true });
	if (entries.length > MAX_NAMES) throw new ShimError("volume.too-large", `the volume ${path} has more than ${MAX_NAMES} entries`);
	const links = new Map<string, string>();
	for (const entry of entries) if (entry.isSymbolicLink()) links.set(entry.name, await readlink(`${path}/${entry.name}`));
	const data = links.get(DATA);
	links.delete(DATA);
	for (const name of [...links.keys()]) if (name.startsWith("..")) links.delete(name);
	const others = entries.filter((entry) => (entry.isFile() || entry.isDirectory()) && !entry.name.startsWith("..")).map(({ name }) => name);
	return {
		mode: stats.mode & MODE_BITS,
		uid: stats.uid,
		gid: stats.gid,
		// Only a name in the folder itself: anything else is not the AtomicWriter's.
		data: data?.includes("/") === true ? undefined : data,
		links,
		others,
	};
}

/** The same for folders in which the same lies; names come in the order of reading, which a change alone changes. */
const fingerprint = ({ data, links, others, mode, uid, gid }: HostFolder): string =>
	JSON.stringify([data, [...links], others, mode, uid, gid]);

/** One live volume; its copy in the guest stays when it is closed. */
export class LiveVolume {
	readonly #options: LiveVolumeOptions;
	readonly #abort = new AbortController();
	#watcher: FSWatcher | undefined;
	#running: Promise<void> | undefined;
	#dirty = false;
	#failures = 0;
	#timer: NodeJS.Timeout | undefined;
	/** What the guest has; undefined while that is not known. */
	#told: string | undefined;

	constructor(options: LiveVolumeOptions) {
		this.#options = options;
	}

	/**
	 * Watches the host's folder, and brings it into the guest once.
	 * @throws ShimError `volume.missing`, `volume.copy`, `volume.too-large`, or of the agent's call
	 */
	async open(signal: AbortSignal): Promise<void> {
		this.#watch();
		try {
			await this.#sync(AbortSignal.any([signal, this.#abort.signal]));
		} catch (error) {
			this.close();
			throw error;
		}
		if (this.#dirty) this.#update();
	}

	/** Takes up a volume that an earlier snpd brought: watches it, and compares everything in the background. */
	resume(): void {
		try {
			this.#watch();
		} catch (error) {
			this.#options.log.warn("a volume is not kept up to date any more", { volume: this.#options.path, error: messageOf(error) });
			return;
		}
		this.#update();
	}

	/** Ends the watching. */
	close(): void {
		this.#abort.abort(new ShimError("wait.canceled", `the volume ${this.#options.path} is not needed any more`));
		this.#watcher?.close();
		clearTimeout(this.#timer);
	}

	/** Settles when no change is on its way to the guest; never rejects. */
	async idle(): Promise<void> {
		while (this.#running !== undefined) await this.#running;
	}

	#watch(): void {
		const { path, log } = this.#options;
		try {
			this.#watcher = watch(path, { persistent: false }, () => this.#changed());
		} catch (error) {
			if (errnoOf(error) === "ENOENT") throw missing(path);
			throw new ShimError("volume.copy", `the volume ${path} can't be watched: ${messageOf(error)}`, {
				cause: error,
				remedy: "raise fs.inotify.max_user_watches and fs.inotify.max_user_instances of the node",
			});
		}
		this.#watcher.on("error", (error) => log.warn("a volume is not kept up to date any more", { volume: path, error: messageOf(error) }));
	}

	#changed(): void {
		this.#failures = 0;
		// The first bringing looks at this when it is over.
		if (this.#told === undefined && this.#running === undefined) this.#dirty = true;
		else this.#update();
	}

	#update(): void {
		this.#dirty = true;
		if (this.#running !== undefined || this.#abort.signal.aborted) return;
		clearTimeout(this.#timer);
		this.#running = this.#bring().finally(() => {
			this.#running = undefined;
			if (this.#dirty) this.#update();
		});
	}

	/** Brings changes until there are none; a failure is logged and tried again after a pause. */
	async #bring(): Promise<void> {
		const { path, log } = this.#options;
		while (this.#dirty && !this.#abort.signal.aborted) {
			this.#dirty = false;
			try {
				await this.#sync(this.#abort.signal);
				this.#failures = 0;
			} catch (error) {
				if (this.#abort.signal.aborted) return;
				if (error instanceof ShimError && error.reason === "volume.missing") {
					log.info("a volume went from the node; the pod keeps what it has", { volume: path });
					this.close();
					return;
				}
				this.#retry(error);
			}
		}
	}

	#retry(error: unknown): void {
		const { path, log } = this.#options;
		const pause = RETRY_MS[this.#failures++];
		log.warn("a change of a volume did not reach the guest", { volume: path, error: messageOf(error), again: pause !== undefined });
		if (pause === undefined) return;
		this.#timer = setTimeout(() => this.#update(), pause);
		this.#timer.unref();
	}

	async #sync(signal: AbortSignal): Promise<void> {
		const { path } = this.#options;
		for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
			signal.throwIfAborted();
			try {
				const host = await readHost(path);
				const print = fingerprint(host);
				if (print === this.#told) return;
				await (this.#options.changes ? this.#change(host, signal) : this.#copy(host, signal));
				// Replaced while it was read: what was read may be half removed.
				if (fingerprint(await readHost(path)) !== print) continue;
				this.#told = print;
				return;
			} catch (error) {
				const gone = errnoOf(error) === "ENOENT" || (error instanceof ShimError && error.reason === "volume.missing");
				if (!gone) throw error;
				if (
					await lstat(path).then(
						() => false,
						() => true,
					)
				)
					throw missing(path);
			}
		}
		throw new ShimError("volume.copy", `the volume ${path} was replaced ${MAX_ATTEMPTS} times while it was read`);
	}

	#tree(name: string, signal: AbortSignal) {
		const { path, tree } = this.#options;
		return readTree({ ...tree, path: `${path}/${name}`, signal });
	}

	/** Whether `..data` still leads to the folder that was read: only then is it whole. */
	async #isCurrent(data: string): Promise<boolean> {
		return (await readlink(`${this.#options.path}/${DATA}`)) === data;
	}

	async #change(host: HostFolder, signal: AbortSignal): Promise<void> {
		const { agent, volume } = this.#options;
		const { mode, uid, gid, data } = host;
		const sink = new ChangeSink(agent, volume, { signal });
		await sink.change({ path: Buffer.alloc(0), folder: { mode, uid, gid } });
		await sink.finish();
		const listed = (await agent.listVolume(volume, { signal })) ?? [];
		const guest = new Map(listed.map((entry) => [text(entry.name), entry]));
		const old = guest.get(DATA);
		const replaced = data !== undefined && (old === undefined || text(old.target) !== data);
		if (replaced) {
			await sink.change({ path: Buffer.from(data), remove: {} });
			await copyTree(this.#tree(data, signal), sink, Buffer.from(data));
			if (!(await this.#isCurrent(data))) throw missing(`${this.#options.path}/${data}`);
			await sink.change({ path: Buffer.from(NEXT), remove: {} });
			await sink.change({ path: Buffer.from(NEXT), link: { target: Buffer.from(data), uid, gid } });
			await sink.change({ path: Buffer.from(DATA), rename: Buffer.from(NEXT) });
		}
		await this.#links(host, guest, sink);
		for (const name of host.others.filter((name) => !guest.has(name))) await copyTree(this.#tree(name, signal), sink, Buffer.from(name));
		for (const name of guest.keys()) {
			const kept = name === DATA ? data !== undefined : name === data || host.links.has(name) || host.others.includes(name);
			if (!kept && name !== NEXT) await sink.change({ path: Buffer.from(name), remove: {} });
		}
		await sink.finish();
	}

	/** Links that are new, and those that lead elsewhere now. */
	async #links(host: HostFolder, guest: ReadonlyMap<string, VolumeEntry>, sink: ChangeSink): Promise<void> {
		const { uid, gid } = host;
		for (const [name, target] of host.links) {
			const there = guest.get(name);
			if (there !== undefined && isLink(there) && text(there.target) === target) continue;
			const link = { target: Buffer.from(target), uid, gid };
			if (there === undefined) {
				await sink.change({ path: Buffer.from(name), link });
				continue;
			}
			if (!isLink(there)) await sink.change({ path: Buffer.from(name), remove: {} });
			await sink.change({ path: Buffer.from(NEXT), remove: {} });
			await sink.change({ path: Buffer.from(NEXT), link });
			await sink.change({ path: Buffer.from(name), rename: Buffer.from(NEXT) });
		}
	}

	/** With Kata's call alone: the same order, and what is gone from the node stays in the guest. */
	async #copy(host: HostFolder, signal: AbortSignal): Promise<void> {
		const { agent, volume, path } = this.#options;
		const { mode, uid, gid, data } = host;
		const sink = new CopyFileSink(agent, volume, { signal });
		await sink.put({ kind: "folder", path: Buffer.alloc(0), mode, uid, gid }, Buffer.alloc(0));
		const link = (name: string, target: string) => {
			const place = Buffer.from(name);
			return sink.put({ kind: "link", path: place, target: Buffer.from(target), mode: 0o777, uid, gid }, place);
		};
		if (data !== undefined) {
			await copyTree(this.#tree(data, signal), sink, Buffer.from(data));
			if (!(await this.#isCurrent(data))) throw missing(`${path}/${data}`);
			await link(DATA, data);
		}
		for (const [name, target] of host.links) await link(name, target);
		for (const name of host.others) await copyTree(this.#tree(name, signal), sink, Buffer.from(name));
	}
}
