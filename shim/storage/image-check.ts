/** Images of the cache that a guest found changed: checked on the node, and a damaged file is given to nobody again. */

import { rm, stat } from "node:fs/promises";

import { ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { fileIdentity } from "../host/filesystem.ts";
import type { ImageCache } from "./image-cache.ts";
import type { LayerCache } from "./layer-cache.ts";
import { readDisk } from "./layer-cache.ts";
import { verifyFile } from "./layer-program.ts";

/** Guests are not trusted, and a check reads the whole file: one at a time, and so long none of a file that was checked. */
const PAUSE_MS = 600_000;
const VERIFY_MS = 3_600_000;
/** Files that are remembered. */
const MAX_REMEMBERED = 1_000;

/** Checks the disks of layers of one cache. */
export class ImageCheck {
	readonly #cache: ImageCache;
	readonly #layers: LayerCache;
	readonly #log: Log | undefined;
	readonly #abort = new AbortController();
	/** Files that wait for their check, by their identity. */
	readonly #waiting = new Set<string>();
	/** When a file was checked last, by its identity and the time of its making: a file that is made later may get the inode of one that is gone. */
	readonly #checked = new Map<string, number>();
	#running: Promise<void> = Promise.resolve();

	constructor(cache: ImageCache, layers: LayerCache, log: Log | undefined) {
		this.#cache = cache;
		this.#layers = layers;
		this.#log = log;
	}

	/** Ends the check that runs. */
	close(): void {
		this.#abort.abort();
	}

	/**
	 * Checks a disk in the background: if it or one of its layers' files is damaged, that is removed and made again for who needs it next. Pods that have
	 * the disk keep it.
	 * @param file the disk's identity (see `fileIdentity`)
	 */
	suspect(file: string): void {
		if (this.#abort.signal.aborted || this.#waiting.has(file)) return;
		this.#waiting.add(file);
		this.#running = this.#running
			.then(() => this.#check(file))
			.catch((error: unknown) => this.#log?.error("an image can't be checked", error));
	}

	async #check(file: string): Promise<void> {
		this.#waiting.delete(file);
		const path = await this.#find(file);
		if (path === undefined || this.#abort.signal.aborted || (await this.#wasChecked(path, file))) return;
		const layers = await readDisk(path).catch(() => []);
		const files = [path, ...layers.map(({ diffId }) => this.#layers.path(diffId))];
		const damaged: string[] = [];
		for (const each of files) if (await this.#dropDamaged(each)) damaged.push(each);
		if (damaged.length > 0) this.#log?.error("damaged images were removed; they are made again", undefined, { files: damaged.join(" ") });
		else this.#log?.warn("a guest says that its image was changed, and the node's file is sound", { path });
	}

	async #wasChecked(path: string, file: string): Promise<boolean> {
		const key = `${file} ${(await stat(path)).birthtimeMs}`;
		const now = Date.now();
		if (now - (this.#checked.get(key) ?? -PAUSE_MS) < PAUSE_MS) return true;
		if (this.#checked.size >= MAX_REMEMBERED) this.#checked.clear();
		this.#checked.set(key, now);
		return false;
	}

	async #find(file: string): Promise<string | undefined> {
		for (const { path } of await this.#cache.files()) {
			if ((await fileIdentity(path).catch(() => undefined)) === file) return path;
		}
		return undefined;
	}

	async #dropDamaged(path: string): Promise<boolean> {
		const before = await fileIdentity(path).catch(() => undefined);
		if (before === undefined) return false;
		try {
			await verifyFile(path, { timeoutMs: VERIFY_MS, signal: this.#abort.signal });
			return false;
		} catch (error) {
			if (!(error instanceof ShimError && error.reason === "storage.layer")) throw error;
			this.#log?.error("a file of the image cache was changed", error);
		}
		// Somebody may have made it again meanwhile.
		if ((await fileIdentity(path).catch(() => undefined)) !== before) return false;
		await rm(path, { force: true });
		return true;
	}
}
