/**
 * Root filesystems as EROFS images that a VM can have as read-only disks. Images of unchanging layers are made once and shared by all pods of the node;
 * a root filesystem that somebody has written to gets an image of its own.
 */

import { open, realpath, rename, rm } from "node:fs/promises";

import { withDeadlineAndEnd } from "../base/deadline.ts";
import { errnoOf, messageOf, ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Scope } from "../base/scope.ts";
import { fileIdentity } from "../host/filesystem.ts";
import { startTimeOf } from "../host/processes.ts";
import { Builds } from "./builds.ts";
import { convert } from "./convert.ts";
import { ImageCache } from "./image-cache.ts";
import { imageKey, isEmptyLayer, requireLayers } from "./layer-identity.ts";
import type { ContainerRef } from "./image-layers.ts";
import { LayeredImages, layersMissing } from "./layered-images.ts";
import type { DiskLayer } from "./layer-program.ts";
import { planRootfs } from "./rootfs-plan.ts";
import type { Layer, RootfsMount, RootfsPlan } from "./rootfs-plan.ts";

export type { RootfsMount } from "./rootfs-plan.ts";

/** How images are made and kept. */
export interface RootfsImagesOptions {
	/** On a disk, and all of it in one file system: images are hard-linked. */
	readonly cacheDir: string;
	/** What images that no pod uses may take, together with those in use. */
	readonly maxBytes: number;
	/**
	 * What tells this program's pods from those of another that uses the same folder: its `state_dir`. `sweep` looks at its own only.
	 */
	readonly instance?: string | undefined;
	/** Bound of one conversion: ten minutes unless given. */
	readonly buildTimeoutMs?: number | undefined;
	/** `mkfs.erofs` on PATH unless given. */
	readonly mkfsPath?: string | undefined;
	readonly log?: Log | undefined;
}

/** Whose root filesystem is wanted, and of what. */
export interface PrepareRequest {
	readonly mounts: readonly RootfsMount[];
	/** The root filesystem when there are no mounts: the bundle's `rootfs`. */
	readonly rootfsDir: string;
	/** The pod's key. */
	readonly owner: string;
	/** The container's id. */
	readonly name: string;
	/** The container, when its image's layers are wanted one by one; what can't be had so is flattened. */
	readonly container?: ContainerRef | undefined;
	/** What can't be had in layers is refused instead. */
	readonly layersOnly?: boolean | undefined;
	/** Gives the image back when it closes. */
	readonly scope: Scope;
	readonly signal?: AbortSignal | undefined;
}

/** A root filesystem's image. */
export interface RootfsImage {
	/** Valid until the scope closes; after a crash of snpd until `release` or `sweep`. */
	readonly path: string;
	/** The file behind the path (see `fileIdentity`). */
	readonly file: string;
	/** True when nothing had to be converted. */
	readonly cached: boolean;
	/** The layers on it, one partition each, topmost first; when there are none it is one file system. */
	readonly layers?: readonly DiskLayer[] | undefined;
}

const DEFAULT_BUILD_TIMEOUT_MS = 600_000;
const MAX_TAKES = 3;
/** How long a preparation that was given up may take to remove what it made. */
const CLEAN_UP_MS = 8_000;
const SLOW_REMEDY = "check the disks of the snapshotter and of storage.cache_dir, or raise timeouts.image_build_ms";

/** The images of one cache folder. Several processes may use one folder at the same time. */
export class RootfsImages {
	readonly #options: RootfsImagesOptions;
	readonly #cache: ImageCache;
	readonly #layers: LayeredImages;
	/** Guest images whose agents are known to take layers, or not to. */
	readonly #guests = new Map<string, boolean>();
	readonly #builds: Builds;

	constructor(options: RootfsImagesOptions) {
		this.#options = options;
		this.#cache = new ImageCache(options.cacheDir, options.instance ?? "");
		this.#builds = new Builds(this.#timeoutMs);
		const { cacheDir, maxBytes, log } = options;
		this.#layers = new LayeredImages({ cacheDir, cache: this.#cache, builds: this.#builds, maxBytes, timeoutMs: this.#timeoutMs, log });
	}

	/**
	 * Gives the image of a root filesystem, and makes it first when there is none. The whole of it has the time of one conversion, also where a file
	 * system does not answer.
	 * @throws ShimError storage.mount (mounts of an unknown kind, layers that are missing), storage.image, storage.full, spec.invalid,
	 * wait.canceled, wait.deadline
	 */
	async prepare(request: PrepareRequest): Promise<RootfsImage> {
		const plan = planRootfs(request.mounts, request.rootfsDir);
		const [what, timeoutMs] = [`the image of ${describe(plan)}`, this.#timeoutMs];
		const wait = { what, timeoutMs, remedy: SLOW_REMEDY, signal: request.signal, graceMs: CLEAN_UP_MS };
		return await withDeadlineAndEnd(wait, (signal) => this.#prepare(request, plan, signal));
	}

	async #prepare(request: PrepareRequest, plan: RootfsPlan, signal: AbortSignal): Promise<RootfsImage> {
		const written = plan.upper !== undefined && !(await isEmptyLayer(plan.upper));
		const layers = written && plan.upper !== undefined ? [plan.upper, ...plan.lowers] : plan.lowers;
		const shared = plan.immutable && !written;
		const ready = request.container !== undefined && shared ? undefined : await readyImage(layers);
		if (ready !== undefined) return ready;
		try {
			await this.#cache.ready();
			signal.throwIfAborted();
			const path = this.#cache.podPath(request.owner, request.name);
			request.scope.defer(`image ${path}`, () => this.#cache.drop(path));
			if (request.layersOnly === true && !shared) throw layersMissing(request.name, "its root filesystem is no unchanged image");
			const layered = shared ? await this.#layered(request, plan, path, signal) : undefined;
			const single = shared && layered === undefined ? await readyImage(layers) : undefined;
			const image = layered ?? single ?? (shared ? await this.#shared(plan, path, signal) : await this.#own(layers, plan, path, signal));
			// The scope may have closed before the image was there.
			if (signal.aborted) await this.#cache.drop(path);
			return image;
		} catch (error) {
			throw named(this.#options.cacheDir, error);
		}
	}

	/** Removes the images of a pod, or of one of its containers. Does nothing when there are none. */
	release(owner: string, name?: string): Promise<void> {
		return this.#cache.release(owner, name);
	}

	/** Ends the watch of images and closes connections to containerd. */
	close(): void {
		this.#layers.close();
	}

	/** Prepares images that this containerd pulls from now on. */
	watch(address: string): void {
		this.#layers.watch(address);
	}

	/** A guest found something changed on a disk of layers with this identity (see `fileIdentity`): it is checked, and no pod gets it if it is damaged. */
	suspect(file: string): void {
		this.#layers.suspect(file);
	}

	/** To be called once at start: removes the images of pods that are gone and what interrupted conversions left. */
	async sweep(liveOwners: ReadonlySet<string>): Promise<void> {
		await this.#cache.sweep(liveOwners);
		await this.#layers.sweep((pid, startTime) => startTimeOf(pid)?.toString() === startTime);
		await this.#cache.evict(this.#options.maxBytes);
	}

	/** What was found about the agent in a guest image. */
	knowGuest(guestImage: string, takesLayers: boolean): void {
		this.#guests.set(guestImage, takesLayers);
	}

	/** Whether the agent in a guest image takes layers; true while nothing is known. */
	guestTakesLayers(guestImage: string): boolean {
		return this.#guests.get(guestImage) ?? true;
	}

	async #layered(
		{ container, mounts, layersOnly = false }: PrepareRequest,
		plan: RootfsPlan,
		path: string,
		signal: AbortSignal,
	): Promise<RootfsImage | undefined> {
		if (container === undefined) return undefined;
		const taken = await this.#layers.take({ container, mounts, plan, path, layersOnly }, signal);
		return taken === undefined ? undefined : { path, ...taken };
	}

	async #shared(plan: RootfsPlan, path: string, signal: AbortSignal): Promise<RootfsImage> {
		const key = await imageKey(plan.lowers, plan.overlayOptions);
		let cached = true;
		// Another process may evict the image between its making and its taking.
		for (let attempt = 0; attempt < MAX_TAKES; attempt++) {
			if (await this.#cache.take(key, path)) return { path, file: await fileIdentity(path), cached };
			cached = false;
			await this.#builds.wait(key, `the image of ${describe(plan)}`, (given) => this.#build(key, plan, given), signal);
		}
		throw new ShimError("storage.image", `the image ${this.#cache.imagePath(key)} disappeared ${MAX_TAKES} times`, {
			remedy: "raise the bound of the image cache",
		});
	}

	async #own(layers: readonly Layer[], plan: RootfsPlan, path: string, signal: AbortSignal): Promise<RootfsImage> {
		await requireLayers(layers);
		const output = this.#cache.unfinishedPath();
		await convert({ layers, overlayOptions: plan.overlayOptions, output, mkfs: this.#mkfs, timeoutMs: this.#timeoutMs, signal });
		await this.#cache.give(output, path);
		return { path, file: await fileIdentity(path), cached: false };
	}

	async #build(key: string, plan: RootfsPlan, signal: AbortSignal): Promise<void> {
		const started = performance.now();
		const final = this.#cache.imagePath(key);
		const output = this.#cache.unfinishedPath();
		const lock = { path: this.#cache.lockPath(key), unless: final };
		const [mkfs, timeoutMs] = [this.#mkfs, this.#timeoutMs];
		try {
			await convert({ layers: plan.lowers, overlayOptions: plan.overlayOptions, output, lock, mkfs, timeoutMs, signal });
			const size = await written(output);
			await rename(output, final);
			this.#options.log?.info("root filesystem converted", { key, bytes: size, durationMs: Math.round(performance.now() - started) });
		} catch (error) {
			// Another process made the image while this one waited for its lock.
			if (error instanceof ShimError || errnoOf(error) !== "ENOENT") throw error;
		} finally {
			await rm(lock.path, { force: true });
		}
		await this.#cache.evict(this.#options.maxBytes, final);
	}

	get #mkfs(): string {
		return this.#options.mkfsPath ?? "mkfs.erofs";
	}

	get #timeoutMs(): number {
		return this.#options.buildTimeoutMs ?? DEFAULT_BUILD_TIMEOUT_MS;
	}
}

/** A single EROFS file is a disk already: the erofs snapshotter's layer of a one-layer image. */
async function readyImage(layers: readonly Layer[]): Promise<RootfsImage | undefined> {
	const [layer] = layers;
	if (layers.length !== 1 || layer?.kind !== "image" || layer.type !== "erofs" || layer.folder !== "" || layer.options.length > 0)
		return undefined;
	try {
		const path = await realpath(layer.source);
		return { path, file: await fileIdentity(path), cached: true };
	} catch (error) {
		throw new ShimError("storage.mount", `the root filesystem's layer ${layer.source}: ${messageOf(error)}`, { cause: error });
	}
}

/** Waits until a file is on the disk, so that its name can't outlive its contents when the power fails. @returns its size in bytes */
async function written(path: string): Promise<number> {
	const file = await open(path, "r+");
	try {
		await file.datasync();
		return (await file.stat()).size;
	} finally {
		await file.close();
	}
}

function describe(plan: RootfsPlan): string {
	const [top] = plan.lowers;
	return top === undefined ? "no layers" : top.kind === "folder" ? top.path : top.source;
}

function named(cacheDir: string, error: unknown): ShimError {
	if (error instanceof ShimError) return error;
	if (errnoOf(error) === "ENOSPC" || errnoOf(error) === "EDQUOT")
		return new ShimError("storage.full", `no space left in ${cacheDir}: ${messageOf(error)}`, { cause: error });
	return new ShimError("storage.image", `the image cache ${cacheDir}: ${messageOf(error)}`, { cause: error });
}
