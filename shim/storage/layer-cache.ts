/** The layer files of a cache folder, one for each uncompressed layer, and the disks that are made of them (docs/contracts.md, "Layers"). */

import { createHash } from "node:crypto";
import { open, readdir, rm, utimes } from "node:fs/promises";
import { join } from "node:path";

import * as v from "valibot";

import { errnoOf, ShimError } from "../base/errors.ts";
import { makeFolder } from "../host/filesystem.ts";
import { erofsSource } from "./erofs-layers.ts";
import { LAYER_FOLDER, LAYER_SUFFIX } from "./image-cache.ts";
import { chainIdOf } from "./image-layers.ts";
import type { ImageContent, ImageLayer } from "./image-layers.ts";
import { assembleDisk, convertLayer, DiskSchema, LayerSchema, parseJson } from "./layer-program.ts";
import type { DiskLayer, DiskSource, LayerDescription } from "./layer-program.ts";

const DESCRIPTION_PLACE = 32_768;
const MAX_DESCRIPTION_BYTES = 512 * 1024;
const LAYER_DESCRIPTION_BYTES = 4096;
/** Layers of one image that are converted at the same time. */
const CONVERSIONS = 2;
/** A disk's layers may be evicted by others between their making and the disk's. */
const MAX_ATTEMPTS = 3;
const KEY_DIGITS = 40;

/** What a preparation tells while it goes on. */
export type LayerProgress = (event: {
	readonly diffId: string;
	readonly done: number;
	readonly total: number;
	readonly cached: boolean;
}) => void;

/** Bounds of one conversion. */
export interface LayerBounds {
	readonly timeoutMs: number;
	readonly signal: AbortSignal;
	readonly onProgress?: LayerProgress | undefined;
}

/** A file of the cache. */
export interface LayerFile {
	readonly path: string;
	readonly bytes: number;
	readonly usedMs: number;
	readonly description: LayerDescription;
}

/**
 * The key of the disk of an image, for `ImageCache`.
 * @param files what tells the files that another program made of the layers from others; none when they are our own
 */
export function diskKey(chainId: string, files?: string): string {
	const digits = files === undefined ? chainId.slice("sha256:".length) : createHash("sha256").update(`${chainId} ${files}`).digest("hex");
	return `layers-${digits.slice(0, KEY_DIGITS)}`;
}

/** Layer files below a cache folder. */
export class LayerCache {
	readonly #folder: string;
	readonly #staging: string;

	/** @param cacheDir absolute; folders are made when they are first needed */
	constructor(cacheDir: string) {
		this.#folder = join(cacheDir, LAYER_FOLDER);
		this.#staging = join(this.#folder, "staging");
	}

	/**
	 * Makes what is missing of an image's layers.
	 * @returns what they are, the lowest first
	 * @throws ShimError storage.layer, storage.full, storage.image, wait.deadline, wait.canceled
	 */
	async makeLayers({ layers }: Pick<ImageContent, "layers">, bounds: LayerBounds): Promise<readonly LayerDescription[]> {
		await makeFolder(this.#staging);
		const made = await this.#convertAll(layers, bounds);
		return layers.map(({ diffId }) => {
			const description = made.get(diffId);
			if (description === undefined) throw new ShimError("internal", `layer ${diffId} was not made`);
			return description;
		});
	}

	/**
	 * Makes what is missing of an image's layers, and the disk of all of them.
	 * @throws ShimError storage.layer, storage.full, storage.image, wait.deadline, wait.canceled
	 */
	async makeDisk(content: Pick<ImageContent, "layers">, output: string, bounds: LayerBounds): Promise<void> {
		await makeFolder(this.#staging);
		for (let attempt = 1; ; attempt++) {
			await this.#convertAll(content.layers, bounds);
			const layers: DiskSource[] = content.layers.map(({ diffId }) => ({ layer: this.path(diffId) })).reverse();
			try {
				await assembleDisk({ layers, output, staging: this.#staging, timeoutMs: bounds.timeoutMs, signal: bounds.signal });
				return;
			} catch (error) {
				const evicted = (await Promise.all(content.layers.map(({ diffId }) => this.#isThere(diffId)))).includes(false);
				if (!evicted || attempt === MAX_ATTEMPTS) throw error;
			}
		}
	}

	/**
	 * Makes a disk of EROFS images that another program made.
	 * @param files topmost first
	 * @param diffIds lowest first
	 * @throws ShimError as `makeDisk`
	 */
	async makeForeignDisk(files: readonly string[], diffIds: readonly string[], output: string, bounds: LayerBounds): Promise<void> {
		await makeFolder(this.#staging);
		const layers = await Promise.all(files.map((file, index) => erofsSource(file, diffIds[diffIds.length - 1 - index] ?? "")));
		await assembleDisk({ layers, output, staging: this.#staging, timeoutMs: bounds.timeoutMs, signal: bounds.signal });
	}

	async #convertAll(layers: readonly ImageLayer[], bounds: LayerBounds): Promise<Map<string, LayerDescription>> {
		const made = new Map<string, LayerDescription>();
		const waiting = [...new Map(layers.map((layer) => [layer.diffId, layer])).values()];
		const abort = new AbortController();
		const signal = AbortSignal.any([bounds.signal, abort.signal]);
		const work = async (): Promise<void> => {
			for (let layer = waiting.shift(); layer !== undefined; layer = waiting.shift())
				made.set(layer.diffId, await this.#convert(layer, { ...bounds, signal }));
		};
		const ended = await Promise.allSettled(
			Array.from({ length: CONVERSIONS }, () =>
				work().catch((error: unknown) => {
					// The others of the image are not worth finishing.
					if (!abort.signal.aborted) abort.abort(error);
					throw error;
				}),
			),
		);
		bounds.signal.throwIfAborted();
		if (abort.signal.aborted) throw abort.signal.reason;
		for (const end of ended) if (end.status === "rejected") throw end.reason;
		return made;
	}

	async #convert(layer: ImageLayer, bounds: LayerBounds): Promise<LayerDescription> {
		const { diffId, digest } = layer;
		const { timeoutMs, signal, onProgress } = bounds;
		const known = await this.#known(diffId);
		if (known !== undefined) {
			onProgress?.({ diffId, done: 1, total: 1, cached: true });
			return known;
		}
		const blob = await layer.open(signal);
		const made = await convertLayer({
			...{ diffId, digest, blob, timeoutMs, signal },
			...{ output: this.path(diffId), staging: this.#staging },
			onProgress: onProgress === undefined ? undefined : (done, total) => onProgress({ diffId, done, total, cached: false }),
		});
		onProgress?.({ diffId, done: 1, total: 1, cached: false });
		return made.layer;
	}

	/** What a layer's file says of itself, if it is there. A damaged one is made again. */
	async #known(diffId: string): Promise<LayerDescription | undefined> {
		if (!(await this.#isThere(diffId))) return undefined;
		const path = this.path(diffId);
		const known = await describeLayer(path).catch(() => undefined);
		if (known?.description.diffId === diffId) return known.description;
		await rm(path, { force: true });
		return undefined;
	}

	/** Marks a layer as used now. */
	async #isThere(diffId: string): Promise<boolean> {
		const now = new Date();
		try {
			await utimes(this.path(diffId), now, now);
			return true;
		} catch (error) {
			if (errnoOf(error) === "ENOENT") return false;
			throw error;
		}
	}

	/** Where the file of a layer is. */
	path(diffId: string): string {
		return join(this.#folder, diffId.slice("sha256:".length) + LAYER_SUFFIX);
	}

	/** All layer files. */
	async list(): Promise<LayerFile[]> {
		const found: LayerFile[] = [];
		for (const name of await readdir(this.#folder).catch(() => [])) {
			if (!name.endsWith(LAYER_SUFFIX)) continue;
			const path = join(this.#folder, name);
			const file = await describeLayer(path).catch(() => undefined);
			if (file !== undefined) found.push(file);
		}
		return found;
	}

	/** Removes what dead converters left on file systems that know no files without a name. */
	async sweep(isAlive: (pid: number, startTime: string) => boolean): Promise<void> {
		for (const name of await readdir(this.#staging).catch(() => [])) {
			const [, pid, startTime] = /^([0-9]+)-([0-9]+)-/.exec(name) ?? [];
			if (pid !== undefined && startTime !== undefined && !isAlive(Number(pid), startTime))
				await rm(join(this.#staging, name), { force: true });
		}
	}
}

async function describeLayer(path: string): Promise<LayerFile> {
	const file = await open(path);
	try {
		const { size, mtimeMs } = await file.stat();
		const { buffer } = await file.read(Buffer.alloc(LAYER_DESCRIPTION_BYTES), 0, LAYER_DESCRIPTION_BYTES, size - LAYER_DESCRIPTION_BYTES);
		return { path, bytes: size, usedMs: mtimeMs, description: v.parse(LayerSchema, JSON.parse(buffer.toString("utf8"))) };
	} finally {
		await file.close();
	}
}

/**
 * The layers of a disk, topmost first.
 * @param chainId what they must give, when that is known
 * @throws ShimError storage.layer when the file is no disk, or one of other layers
 */
export async function readDisk(path: string, chainId?: string): Promise<readonly DiskLayer[]> {
	const wrong = (what: string): ShimError =>
		new ShimError("storage.layer", `the disk ${path} ${what}`, { remedy: "remove the file: it is made again" });
	const file = await open(path);
	try {
		const first = await file.read(Buffer.alloc(16 * 1024), 0, 16 * 1024, DESCRIPTION_PLACE);
		const length = first.bytesRead < 4 ? 0 : first.buffer.readUInt32LE(0);
		if (length === 0 || length > MAX_DESCRIPTION_BYTES) throw wrong("has no description");
		const more = length + 4 > first.bytesRead ? await file.read(Buffer.alloc(length + 4), 0, length + 4, DESCRIPTION_PLACE) : first;
		const found = v.safeParse(DiskSchema, parseJson(more.buffer.toString("utf8", 4, length + 4)));
		if (!found.success) throw wrong("has a damaged description");
		const { layers } = found.output;
		if (chainId !== undefined && chainIdOf(layers.map(({ diffId }) => diffId).reverse()) !== chainId) throw wrong("has other layers");
		return layers;
	} finally {
		await file.close();
	}
}
