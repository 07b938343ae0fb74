/** The cache as its operator sees it: prepares images ahead, lists, checks and bounds what is there. Pods may use the same folder meanwhile. */

import { readFile } from "node:fs/promises";
import { basename, join } from "node:path";

import * as v from "valibot";

import { messageOf, ShimError } from "../base/errors.ts";
import { ImageCache, LAYER_SUFFIX } from "./image-cache.ts";
import type { CachedFile } from "./image-cache.ts";
import { imageFiles } from "./image-files.ts";
import { chainIdOf, contentFrom, ImageLayers, NoLayers } from "./image-layers.ts";
import type { ImageContent, ImageDefaults } from "./image-layers.ts";
import { diskKey, LayerCache, readDisk } from "./layer-cache.ts";
import type { LayerProgress } from "./layer-cache.ts";
import { DigestSchema, parseJson, verifyFile } from "./layer-program.ts";
import type { DiskLayer } from "./layer-program.ts";

/** Where an image comes from. */
export type ImageSource =
	| { readonly kind: "containerd"; readonly address: string; readonly namespace: string; readonly name: string }
	| { readonly kind: "layout"; readonly folder: string };

/** An image's disk in the cache. */
export interface PreparedImage {
	readonly chainId: string;
	readonly path: string;
	/** Topmost first. */
	readonly layers: readonly DiskLayer[];
}

/** An image's layers, whether it has a disk or not. */
export interface InspectedImage {
	readonly chainId: string;
	/** Its disk; null when it was not prepared. */
	readonly path: string | null;
	/** Topmost first, as a pod's VM gets them. */
	readonly layers: readonly DiskLayer[];
}

/** An image with all that a container is made of. */
export interface DescribedImage extends InspectedImage {
	readonly defaults: ImageDefaults;
	/** `/etc/passwd` and `/etc/group`; undefined when there is none. */
	readonly passwd: string | undefined;
	readonly group: string | undefined;
}

/** What one file of the cache is. */
export type StoredKind = "layers" | "flattened" | "layer";
export type StoredFile = CachedFile & { readonly kind: StoredKind; readonly chainId?: string; readonly layers?: readonly DiskLayer[] };

const IndexSchema = v.object({ manifests: v.pipe(v.array(v.object({ digest: DigestSchema })), v.minLength(1), v.maxLength(64)) });
const VERIFY_MS = 3_600_000;

/** The images of one cache folder. */
export class ImageStore {
	readonly #cache: ImageCache;
	readonly #layers: LayerCache;
	readonly #containerd = new ImageLayers();
	readonly #timeoutMs: number;

	/** @param timeoutMs bound of one layer's conversion */
	constructor(cacheDir: string, timeoutMs: number) {
		this.#cache = new ImageCache(cacheDir, "");
		this.#layers = new LayerCache(cacheDir);
		this.#timeoutMs = timeoutMs;
	}

	close(): void {
		this.#containerd.close();
	}

	/**
	 * Makes the disk of an image's layers, unless it is there.
	 * @throws ShimError storage.layer when the image is not there or has a layer that can't be one; storage.full, storage.image
	 */
	async prepare(
		source: ImageSource,
		signal: AbortSignal,
		onProgress?: LayerProgress,
	): Promise<PreparedImage & { readonly cached: boolean }> {
		const content = await this.#content(source, signal);
		await this.#cache.ready();
		const { chainId, path } = this.#place(content);
		const known = await readDisk(path, chainId).catch(() => undefined);
		if (known !== undefined) return { chainId, path, layers: known, cached: true };
		await this.#layers.makeDisk(content, path, { timeoutMs: this.#timeoutMs, signal, onProgress });
		return { chainId, path, layers: await readDisk(path, chainId), cached: false };
	}

	/**
	 * An image's layers with their root hashes. Those that are not in the cache are made, since the hash is that of what is made; the disk is not. Nothing but
	 * the image is asked, so that the answer is the same on every machine.
	 * @throws ShimError as `prepare`
	 */
	async inspect(source: ImageSource, signal: AbortSignal, onProgress?: LayerProgress): Promise<InspectedImage> {
		return await this.#inspect(await this.#content(source, signal), signal, onProgress);
	}

	async #inspect(content: ImageContent, signal: AbortSignal, onProgress?: LayerProgress): Promise<InspectedImage> {
		const { chainId, path } = this.#place(content);
		const known = await readDisk(path, chainId).catch(() => undefined);
		if (known !== undefined) return { chainId, path, layers: known };
		const made = await this.#layers.makeLayers(content, { timeoutMs: this.#timeoutMs, signal, onProgress });
		const layers = made.map(({ diffId, dataBytes, treeBytes, rootHash }) => ({ diffId, dataBytes, treeBytes, rootHash }));
		return { chainId, path: null, layers: layers.reverse() };
	}

	/**
	 * An image with all that a container is made of: its layers with their root hashes, its defaults, its accounts.
	 * @throws ShimError as `prepare`
	 */
	async describe(source: ImageSource, signal: AbortSignal, onProgress?: LayerProgress): Promise<DescribedImage> {
		const content = await this.#content(source, signal);
		const { defaults } = content;
		if (defaults === undefined) throw new ShimError("storage.layer", "the image's configuration is not of the form of an image's");
		const [passwd, group] = await imageFiles(content.layers, ["etc/passwd", "etc/group"], { timeoutMs: this.#timeoutMs, signal });
		return { ...(await this.#inspect(content, signal, onProgress)), defaults, passwd, group };
	}

	/** The disk of an image. @throws ShimError storage.layer when it was not prepared */
	async find(source: ImageSource, signal: AbortSignal): Promise<PreparedImage> {
		const { chainId, path } = this.#place(await this.#content(source, signal));
		try {
			return { chainId, path, layers: await readDisk(path, chainId) };
		} catch (error) {
			if (error instanceof ShimError) throw error;
			throw new ShimError("storage.layer", `the image is not in the cache: ${messageOf(error)}`, {
				remedy: "snpctl image prepare",
				cause: error,
			});
		}
	}

	/** Everything in the cache. */
	async list(): Promise<StoredFile[]> {
		return await Promise.all((await this.#cache.files()).map(described));
	}

	/** Checks every byte of a file against its hash tree. @throws ShimError storage.layer that says what differs */
	async verify(file: StoredFile, signal: AbortSignal): Promise<void> {
		await verifyFile(file.path, { timeoutMs: VERIFY_MS, signal });
	}

	/**
	 * Removes what no pod uses, the longest unused first, until the rest takes at most `maxBytes`.
	 * @param keep one that stays
	 */
	collect(maxBytes: number, keep?: string): Promise<CachedFile[]> {
		return this.#cache.evict(maxBytes, keep);
	}

	async #content(source: ImageSource, signal: AbortSignal): Promise<ImageContent> {
		try {
			if (source.kind === "layout") return await layoutContent(source.folder);
			return await this.#containerd.contentOf(source.address, source.namespace, source.name, undefined, signal);
		} catch (error) {
			if (!(error instanceof NoLayers)) throw error;
			const remedy = "pull the image with this containerd, in this namespace (--address, --namespace), and keep its layers";
			throw new ShimError("storage.layer", messageOf(error), { remedy, cause: error });
		}
	}

	#place({ layers }: ImageContent): { readonly chainId: string; readonly path: string } {
		const chainId = chainIdOf(layers.map(({ diffId }) => diffId));
		return { chainId, path: this.#cache.imagePath(diskKey(chainId)) };
	}
}

/** The first image for this platform of an OCI image layout (image-layout.md). */
async function layoutContent(folder: string): Promise<ImageContent> {
	const blob = (digest: string): string => join(folder, "blobs", digest.replace(":", "/"));
	const read = (digest: string): Promise<Buffer | undefined> => readFile(blob(digest)).catch(() => undefined);
	let text: string;
	try {
		text = await readFile(join(folder, "index.json"), "utf8");
	} catch (error) {
		throw new ShimError("call.invalid", `${folder} is no OCI image layout: ${messageOf(error)}`, {
			remedy: "name a folder with an index.json",
		});
	}
	const index = v.safeParse(IndexSchema, parseJson(text));
	if (!index.success) throw new ShimError("call.invalid", `${folder}/index.json names no image`);
	const targets = index.output.manifests.map(({ digest }) => digest);
	return await contentFrom(targets, undefined, read, (digest) => Promise.resolve(blob(digest)));
}

async function described(file: CachedFile): Promise<StoredFile> {
	if (file.path.endsWith(LAYER_SUFFIX)) return { ...file, kind: "layer" };
	if (!basename(file.path).startsWith("layers-")) return { ...file, kind: "flattened" };
	const layers = await readDisk(file.path).catch(() => []);
	return {
		...file,
		kind: "layers",
		layers,
		...(layers.length > 0 ? { chainId: chainIdOf(layers.map(({ diffId }) => diffId).reverse()) } : {}),
	};
}
