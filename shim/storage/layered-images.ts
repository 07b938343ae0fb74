/** Root filesystems as disks of their images' layers (docs/images.md). */

import { rm } from "node:fs/promises";

import { explain, ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { Recent } from "../base/recent.ts";
import { fileIdentity, fileOrigin } from "../host/filesystem.ts";
import type { Builds } from "./builds.ts";
import { erofsFiles } from "./erofs-layers.ts";
import type { ImageCache } from "./image-cache.ts";
import { chainIdOf, ImageLayers, NoLayers } from "./image-layers.ts";
import type { ContainerRef, ImageContent, SnapshotChain } from "./image-layers.ts";
import { ImageCheck } from "./image-check.ts";
import { ImageWatch } from "./image-watch.ts";
import { diskKey, LayerCache, readDisk } from "./layer-cache.ts";
import { imageKey } from "./layer-identity.ts";
import type { DiskLayer } from "./layer-program.ts";
import type { RootfsMount, RootfsPlan } from "./rootfs-plan.ts";

const MAX_TAKES = 3;
/** As many images as a node has at a time, and more. */
const MAX_KNOWN = 512;

/** What the disks of layers share with other images. */
export interface LayeredImagesOptions {
	readonly cacheDir: string;
	readonly cache: ImageCache;
	readonly builds: Builds;
	readonly maxBytes: number;
	/** Bound of one layer's conversion. */
	readonly timeoutMs: number;
	readonly log: Log | undefined;
}

/** Whose layers are wanted. */
export interface WantedLayers {
	readonly container: ContainerRef;
	readonly mounts: readonly RootfsMount[];
	readonly plan: RootfsPlan;
	/** The pod's path of the disk. */
	readonly path: string;
	/** Nothing else will do. */
	readonly layersOnly: boolean;
}

/** A disk of layers that a pod has. */
export interface LayeredImage {
	readonly cached: boolean;
	/** The file behind the path (see `fileIdentity`). */
	readonly file: string;
	/** Topmost first. */
	readonly layers: readonly DiskLayer[];
}

/** What was read of a disk: see `fileIdentity` and `fileOrigin`. */
interface KnownDisk {
	readonly file: string;
	readonly origin: string;
	readonly layers: readonly DiskLayer[];
}

/** A disk to find or to make. */
interface WantedDisk {
	readonly key: string;
	readonly chainId: string;
	readonly path: string;
	/** EROFS images of the layers that another program made, topmost first. */
	readonly files: readonly string[] | undefined;
	readonly find: () => Promise<ImageContent>;
}

/** The disks of layers of one cache folder. */
export class LayeredImages {
	readonly #options: LayeredImagesOptions;
	readonly #layers: LayerCache;
	readonly #containerd = new ImageLayers();
	/** Chain ids that containerd has told, by the identities of layers: no other layers ever have one of those. */
	readonly #chains = new Recent<string>(MAX_KNOWN);
	/** What was read of disks, by their keys. A disk that is made anew is another file, of another origin, though it may have the inode of the last one. */
	readonly #disks = new Recent<KnownDisk>(MAX_KNOWN);
	readonly #watch: ImageWatch;
	readonly #check: ImageCheck;

	constructor(options: LayeredImagesOptions) {
		this.#options = options;
		this.#layers = new LayerCache(options.cacheDir);
		this.#watch = new ImageWatch(this.#containerd, (...image) => this.#prepareAhead(...image), options.log);
		this.#check = new ImageCheck(options.cache, this.#layers, options.log);
	}

	/** Ends the watch of images and closes connections to containerd. */
	close(): void {
		this.#watch.close();
		this.#check.close();
		this.#containerd.close();
	}

	/** Prepares images that this containerd pulls from now on. */
	watch(address: string): void {
		this.#watch.watch(address);
	}

	/** A guest found something changed on a disk (see `ImageCheck.suspect`). */
	suspect(file: string): void {
		this.#disks.deleteIf((known) => known.file === file);
		this.#check.suspect(file);
	}

	/** Removes what dead converters left. */
	sweep(isAlive: (pid: number, startTime: string) => boolean): Promise<void> {
		return this.#layers.sweep(isAlive);
	}

	/**
	 * Gives a pod the disk of a container's layers, and makes it first when there is none.
	 * @returns undefined when the layers can't be had, which the log tells
	 * @throws ShimError storage.layer when nothing else will do, storage.full, storage.image, wait.deadline, wait.canceled
	 */
	async take({ container, mounts, plan, path, layersOnly }: WantedLayers, signal: AbortSignal): Promise<LayeredImage | undefined> {
		const ask = (): Promise<SnapshotChain> => this.#containerd.chainOf(container, mounts, signal);
		try {
			const identity = await imageKey(plan.lowers, []).catch(() => "");
			const chainId = this.#chains.get(identity) ?? (await ask()).chainId;
			if (identity !== "") this.#chains.set(identity, chainId);
			const find = async (): Promise<ImageContent> => {
				const { image } = await ask();
				return await this.#containerd.contentOf(container.address, container.namespace, image, chainId, signal);
			};
			// Images of another program have root hashes that do not follow from the layers.
			const files = layersOnly ? undefined : erofsFiles(plan.lowers);
			const key = diskKey(chainId, files === undefined ? undefined : identity || (await imageKey(plan.lowers, [])));
			return await this.#take({ key, chainId, path, files, find }, signal);
		} catch (error) {
			if (!(error instanceof NoLayers) && !(error instanceof ShimError && error.reason === "storage.layer")) throw error;
			if (layersOnly) throw layersMissing(container.id, explain(error));
			this.#options.log?.warn("layers are flattened, and the image's hash does not follow from its digest", {
				container: container.id,
				reason: explain(error),
			});
			return undefined;
		}
	}

	async #take({ key, chainId, path, files, find }: WantedDisk, signal: AbortSignal): Promise<LayeredImage> {
		const { builds, cache, log } = this.#options;
		let cached = true;
		// Another process may evict the disk between its making and its taking.
		for (let attempt = 0; attempt < MAX_TAKES; attempt++) {
			if (await cache.take(key, path)) {
				try {
					const [file, origin] = await Promise.all([fileIdentity(path), fileOrigin(path)]);
					return { cached, file, layers: await this.#layersOf(key, { file, origin }, path, chainId) };
				} catch (error) {
					log?.warn("a damaged disk of layers is made again", { key, reason: explain(error) });
					this.#disks.delete(key);
					await rm(cache.imagePath(key), { force: true });
				}
			}
			cached = false;
			const content = await find();
			await builds.wait(key, `the layers of ${chainId}`, (given) => this.#build(key, content, given, files), signal);
		}
		throw new ShimError("storage.image", `the disk ${cache.imagePath(key)} disappeared ${MAX_TAKES} times`, {
			remedy: "raise the bound of the image cache",
		});
	}

	async #layersOf(key: string, disk: Omit<KnownDisk, "layers">, path: string, chainId: string): Promise<readonly DiskLayer[]> {
		const known = this.#disks.get(key);
		if (known?.origin === disk.origin) return known.layers;
		const layers = await readDisk(path, chainId);
		this.#disks.set(key, { ...disk, layers });
		return layers;
	}

	async #build(key: string, { layers }: ImageContent, signal: AbortSignal, files?: readonly string[]): Promise<void> {
		const { cache, log, maxBytes, timeoutMs } = this.#options;
		const started = performance.now();
		const output = cache.imagePath(key);
		const diffIds = layers.map(({ diffId }) => diffId);
		if (files !== undefined && files.length !== layers.length)
			throw new NoLayers(`the snapshot has ${files.length} EROFS images for ${layers.length} layers`);
		await (files === undefined
			? this.#layers.makeDisk({ layers }, output, { timeoutMs, signal })
			: this.#layers.makeForeignDisk(files, diffIds, output, { timeoutMs, signal }));
		log?.info("disk of layers made", { key, layers: layers.length, durationMs: Math.round(performance.now() - started) });
		await cache.evict(maxBytes, output);
	}

	async #prepareAhead(address: string, namespace: string, name: string, signal: AbortSignal): Promise<void> {
		const { builds, cache } = this.#options;
		await cache.ready();
		const content = await this.#containerd.contentOf(address, namespace, name, undefined, signal);
		const chainId = chainIdOf(content.layers.map(({ diffId }) => diffId));
		const key = diskKey(chainId);
		// Every pull is told of, also one that brings nothing new; the layers of a disk that is there may be evicted.
		const known = await readDisk(cache.imagePath(key), chainId).catch(() => undefined);
		if (known !== undefined) return;
		await builds.wait(key, `the layers of ${name}`, (given) => this.#build(key, content, given), signal);
	}
}

/** The refusal of a container that may have its image in layers only. */
export function layersMissing(container: string, reason: string): ShimError {
	return new ShimError("storage.layer", `container ${container} can't have its image in layers, and its pod takes no other: ${reason}`, {
		remedy: 'see docs/images.md, "When an image is flattened all the same"',
	});
}
