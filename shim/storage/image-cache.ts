/** The folder of images: shared ones under their keys, and for every pod hard links to those that it uses, so that nothing in use is ever removed. */

import { createHash } from "node:crypto";
import { link, mkdir, readdir, rename, rm, rmdir, stat, utimes } from "node:fs/promises";
import { dirname, join } from "node:path";

import { errnoOf, messageOf, ShimError } from "../base/errors.ts";
import { makeFolder, removeFile } from "../host/filesystem.ts";
import { startTimeOf } from "../host/processes.ts";

const SUFFIX = ".erofs";
/** Where layer files are below the cache folder, and how their names end. */
export const LAYER_FOLDER = "layers";
export const LAYER_SUFFIX = ".layer";
/** containerd's ids: at most 76 characters of these. A pod's key is of the same kind. */
const NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/;

/** Attempts to put an image into a pod's folder. */
const MAX_PUTS = 3;
/** Unit of `stat`'s blocks (stat(2)). */
const BLOCK_BYTES = 512;

/** A file that the bound of the cache counts. */
export interface CachedFile {
	readonly path: string;
	/** What it takes on the disk: holes don't count. */
	readonly bytes: number;
	readonly usedMs: number;
	/** A pod has it. */
	readonly inUse: boolean;
}

/** Folders and names below the cache folder. */
export class ImageCache {
	/** Images under their keys. */
	readonly #images: string;
	/** Layer files, which share the bound: disks are made of them. */
	readonly #layers: string;
	readonly #folder: string;
	readonly #building: string;
	readonly #pods: string;
	#made: Promise<unknown> | undefined;
	#counter = 0;

	/**
	 * @param folder absolute; it is made when it is first needed
	 * @param instance whose pods these are: several programs share the images of one folder, but know only their own pods
	 */
	constructor(folder: string, instance: string) {
		this.#folder = folder;
		this.#images = join(folder, "rootfs");
		this.#layers = join(folder, LAYER_FOLDER);
		this.#building = join(this.#images, "building");
		this.#pods = join(this.#images, "pods", createHash("sha256").update(instance).digest("hex").slice(0, 16));
	}

	/**
	 * Makes the folders.
	 * @throws ShimError storage.image when the cache folder can't hold files; SystemError
	 */
	async ready(): Promise<void> {
		// One attempt at a time: on a file system that does not answer each holds one of the few threads that Node has for files.
		this.#made ??= this.#make();
		try {
			await this.#made;
		} catch (error) {
			this.#made = undefined;
			throw error;
		}
	}

	async #make(): Promise<void> {
		try {
			for (const folder of [this.#building, this.#pods]) await makeFolder(folder);
		} catch (error) {
			if (errnoOf(error) === "ENOSPC" || errnoOf(error) === "EDQUOT") throw error;
			throw new ShimError("storage.image", `the folder of images ${this.#folder} can't be made: ${messageOf(error)}`, {
				remedy: "set storage.cache_dir to a folder on a disk that can be written to",
				cause: error,
			});
		}
	}

	/** Where the image of a key is. */
	imagePath(key: string): string {
		return join(this.#images, key + SUFFIX);
	}

	/** The lock of whoever makes the image of a key. */
	lockPath(key: string): string {
		return join(this.#building, `${key}.lock`);
	}

	/** A name for an unfinished image that nobody else has, and that tells later who made it. */
	unfinishedPath(): string {
		this.#counter += 1;
		return join(this.#building, `${process.pid}-${startTimeOf(process.pid) ?? 0n}-${this.#counter}${SUFFIX}`);
	}

	/**
	 * Where an image of a pod is.
	 * @throws ShimError spec.invalid when a name is no identifier of containerd
	 */
	podPath(owner: string, name: string): string {
		for (const part of [owner, name]) {
			if (!NAME.test(part)) throw new ShimError("spec.invalid", `${JSON.stringify(part)} is no identifier of a pod or container`);
		}
		return join(this.#pods, owner, name + SUFFIX);
	}

	/**
	 * Puts an image at a pod's path by `place`. The pod's folder, which lies in one that `ready` has made, is there unless this is the pod's first image; it
	 * goes with its last one, also while another is put there.
	 * @throws what `place` throws
	 */
	async #put(path: string, place: () => Promise<void>): Promise<void> {
		for (let attempt = 1; ; attempt++) {
			try {
				await place();
				return;
			} catch (error) {
				if (errnoOf(error) !== "ENOENT" || attempt === MAX_PUTS) throw error;
				await this.#makePodFolder(dirname(path));
			}
		}
	}

	async #makePodFolder(folder: string): Promise<void> {
		try {
			await mkdir(folder, { mode: 0o700 });
		} catch (error) {
			if (errnoOf(error) === "EEXIST") return;
			if (errnoOf(error) !== "ENOENT") throw error;
			// Somebody has removed the cache.
			await makeFolder(folder);
		}
	}

	/**
	 * Gives a pod the image of a key and marks it as used now.
	 * @returns false when there is no such image
	 */
	async take(key: string, path: string): Promise<boolean> {
		const image = this.imagePath(key);
		const now = new Date();
		// Neither goes on when this has returned: a link that came later would be in the way of the next attempt.
		const done = await Promise.allSettled([utimes(image, now, now), this.#put(path, () => linkInstead(image, path))]);
		const failures = done.flatMap((one) => (one.status === "rejected" ? [one.reason as unknown] : []));
		for (const error of failures) if (errnoOf(error) !== "ENOENT") throw error;
		return failures.length === 0;
	}

	/** Gives a pod an image of its own by renaming it. */
	async give(image: string, path: string): Promise<void> {
		await this.#put(path, () => rename(image, path));
	}

	/** Removes one image of a pod, and the pod's folder with its last one. */
	async drop(path: string): Promise<void> {
		await removeFile(path);
		await rmdir(dirname(path)).catch(() => undefined);
	}

	/** Removes the images of a pod, or one of them. */
	async release(owner: string, name?: string): Promise<void> {
		if (!NAME.test(owner) || (name !== undefined && !NAME.test(name))) return;
		if (name === undefined) await rm(join(this.#pods, owner), { recursive: true, force: true });
		else await this.drop(this.podPath(owner, name));
	}

	/**
	 * Removes shared images that no pod uses, the longest unused first, until the shared ones take at most `maxBytes`.
	 * @param keep one that somebody is about to take
	 * @returns what was removed
	 */
	async evict(maxBytes: number, keep?: string): Promise<CachedFile[]> {
		const images = await this.files();
		const removed: CachedFile[] = [];
		let total = images.reduce((sum, image) => sum + image.bytes, 0);
		for (const image of images.sort((a, b) => a.usedMs - b.usedMs)) {
			if (total <= maxBytes) break;
			if (image.inUse || image.path === keep) continue;
			await rm(image.path, { force: true });
			removed.push(image);
			total -= image.bytes;
		}
		return removed;
	}

	/** All shared images, and all layer files. */
	async files(): Promise<CachedFile[]> {
		const files: CachedFile[] = [];
		const names = (await list(this.#images)).filter((name) => name.endsWith(SUFFIX)).map((name) => join(this.#images, name));
		const layers = (await list(this.#layers)).filter((name) => name.endsWith(LAYER_SUFFIX)).map((name) => join(this.#layers, name));
		for (const path of [...names, ...layers]) {
			const stats = await stat(path).catch(() => undefined);
			const bytes = stats === undefined ? 0 : stats.blocks * BLOCK_BYTES;
			if (stats !== undefined) files.push({ path, bytes, usedMs: stats.mtimeMs, inUse: stats.nlink > 1 });
		}
		return files;
	}

	/** Removes the images of pods that are not alive, and what dead builders left. Locks stay: they are empty. */
	async sweep(liveOwners: ReadonlySet<string>): Promise<void> {
		for (const owner of await list(this.#pods)) {
			if (!liveOwners.has(owner)) await rm(join(this.#pods, owner), { recursive: true, force: true });
		}
		for (const name of await list(this.#building)) {
			const [, pid, startTime] = /^([0-9]+)-([0-9]+)-/.exec(name) ?? [];
			if (pid === undefined || startTimeOf(Number(pid))?.toString() === startTime) continue;
			await rm(join(this.#building, name), { recursive: true, force: true });
		}
	}
}

/** A second name for a file, in place of what has that name. */
async function linkInstead(file: string, path: string): Promise<void> {
	try {
		await link(file, path);
	} catch (error) {
		if (errnoOf(error) !== "EEXIST") throw error;
		await rm(path, { force: true });
		await link(file, path);
	}
}

async function list(folder: string): Promise<string[]> {
	try {
		return await readdir(folder);
	} catch (error) {
		if (errnoOf(error) === "ENOENT") return [];
		throw error;
	}
}
