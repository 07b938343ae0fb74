/**
 * Which layers a container's snapshot consists of, asked of containerd: the container's snapshot names its parent, a chain id, which commits to the
 * digests of all uncompressed layers (OCI image specification, "Layer ChainID"). The image's configuration lists them; a list that gives
 * another chain id is of another image, and refused.
 */

import { createHash } from "node:crypto";
import { access } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import { isDeepStrictEqual } from "node:util";

import * as v from "valibot";

import { messageOf } from "../base/errors.ts";
import { ContainerdApi } from "../wire/containerd-api.ts";
import type { MountInfo } from "../wire/containerd-api.ts";
import { DigestSchema } from "./layer-program.ts";
import type { RootfsMount } from "./rootfs-plan.ts";

/** A container of containerd's store. */
export interface ContainerRef {
	/** The path of containerd's gRPC socket. */
	readonly address: string;
	readonly namespace: string;
	readonly id: string;
}

/** A layer of an image. */
export interface ImageLayer {
	/** Digest of the uncompressed tar. */
	readonly diffId: string;
	/** Digest of the blob. */
	readonly digest: string;
	/** The blob: a file, or its bytes. */
	readonly open: (signal: AbortSignal) => Promise<string | Readable>;
}

/** An image for one platform. */
export interface ImageContent {
	/** The lowest first. */
	readonly layers: readonly ImageLayer[];
	/** How its containers run unless they are told otherwise; undefined for a configuration that is not of the form. */
	readonly defaults: ImageDefaults | undefined;
}

/** What a container's snapshot was made of. */
export interface SnapshotChain {
	/** Commits to the digests of all layers. */
	readonly chainId: string;
	/** The image's name; empty for a container without one. */
	readonly image: string;
}

/** Why layers can't be known; the root filesystem can still be flattened. */
export class NoLayers extends Error {
	override readonly name = "NoLayers";
}

const CALL_MS = 10_000;
/** Indices, manifests and configurations. */
const MAX_JSON_BYTES = 4 * 1024 * 1024;
const MAX_MANIFESTS = 64;
const BLOB_MS = 3_600_000;
/** What a VM runs, in the terms of images' configurations. */
const [OS, ARCHITECTURE] = ["linux", "amd64"];

const DescriptorSchema = v.object({ digest: DigestSchema, mediaType: v.optional(v.string()) });
const DocumentSchema = v.object({
	manifests: v.optional(v.pipe(v.array(DescriptorSchema), v.maxLength(MAX_MANIFESTS))),
	config: v.optional(DescriptorSchema),
	layers: v.optional(v.array(DescriptorSchema)),
});
const ConfigSchema = v.object({
	os: v.optional(v.string(), OS),
	architecture: v.optional(v.string(), ARCHITECTURE),
	rootfs: v.object({ diff_ids: v.pipe(v.array(DigestSchema), v.minLength(1)) }),
	config: v.optional(v.unknown()),
});
const strings = v.nullish(v.array(v.string()), []);
const text = v.nullish(v.string(), "");
/** The part of a configuration that containers are made with (OCI image specification, config.md). */
const DefaultsSchema = v.object({ Env: strings, Entrypoint: strings, Cmd: strings, WorkingDir: text, User: text });
/** How an image's containers run unless they are told otherwise. */
export type ImageDefaults = v.InferOutput<typeof DefaultsSchema>;

/** The chain id of layers, the lowest first. */
export function chainIdOf(diffIds: readonly string[]): string {
	return diffIds.reduce((chain, diffId) => `sha256:${createHash("sha256").update(`${chain} ${diffId}`).digest("hex")}`);
}

/** Asks the containerds of a node, over one connection to each. */
export class ImageLayers {
	readonly #connections = new Map<string, ContainerdApi>();
	/** The snapshotter of the latest container, by containerd and namespace. */
	readonly #snapshotters = new Map<string, string>();
	readonly #contentFolders = new Map<string, Promise<string | undefined>>();

	/** Closes all connections. */
	close(): void {
		for (const connection of this.#connections.values()) connection.close();
		this.#connections.clear();
	}

	/**
	 * The chain id of what a container's root filesystem was made of.
	 * @param mounts what containerd gave for it, which must be those of the container's snapshot
	 * @throws NoLayers
	 */
	async chainOf(ref: ContainerRef, mounts: readonly RootfsMount[], signal: AbortSignal): Promise<SnapshotChain> {
		const api = this.#connect(ref.address);
		const call = { timeoutMs: CALL_MS, signal };
		const snapshot = (snapshotter: string, key: string): Promise<[string | undefined, readonly MountInfo[] | undefined]> =>
			Promise.all([told(api.parentOf(ref.namespace, snapshotter, key, call)), told(api.mounts(ref.namespace, snapshotter, key, call))]);
		// Nearly always the snapshot has the container's name, and the snapshotter is the last one: one way instead of two.
		const guess = this.#snapshotters.get(`${ref.address} ${ref.namespace}`);
		const guessed = guess === undefined ? undefined : snapshot(guess, ref.id);
		guessed?.catch(() => undefined);
		const container = await told(api.container(ref.namespace, ref.id, call));
		if (container === undefined || container.snapshotKey === "") throw new NoLayers(`container ${ref.id} has no snapshot`);
		const { snapshotter, snapshotKey, image } = container;
		this.#snapshotters.set(`${ref.address} ${ref.namespace}`, snapshotter);
		const right = guessed !== undefined && guess === snapshotter && snapshotKey === ref.id;
		const [parent, own] = await (right ? guessed : snapshot(snapshotter, snapshotKey));
		if (parent === undefined || own === undefined) throw new NoLayers(`the snapshot ${snapshotKey} is gone`);
		if (!v.is(DigestSchema, parent)) throw new NoLayers(`the snapshot ${snapshotKey} was not made of an image's layers`);
		if (!isDeepStrictEqual(own.map(plainMount), mounts.map(plainMount)))
			throw new NoLayers(`the root filesystem is not the snapshot ${snapshotKey} of the container`);
		return { chainId: parent, image };
	}

	/**
	 * The image of a name whose layers give this chain id.
	 * @param chainId that of the name for linux/amd64 when undefined
	 * @throws NoLayers also when content is gone (`discard_unpacked_layers`)
	 */
	async contentOf(
		address: string,
		namespace: string,
		name: string,
		chainId: string | undefined,
		signal: AbortSignal,
	): Promise<ImageContent> {
		const api = this.#connect(address);
		const call = { timeoutMs: CALL_MS, signal };
		const target = name === "" ? undefined : await told(api.imageTarget(namespace, name, call));
		if (target === undefined) throw new NoLayers(`the image ${name === "" ? "of the container" : name} is gone`);
		const read = (digest: string): Promise<Buffer | undefined> => told(api.content(namespace, digest, MAX_JSON_BYTES, call));
		const open = async (digest: string, given: AbortSignal): Promise<string | Readable> =>
			(await this.#blobFile(address, api, digest)) ??
			Readable.from(api.readContent(namespace, digest, { timeoutMs: BLOB_MS, signal: given }));
		return await contentFrom([target], chainId, read, open);
	}

	/** Images as they come. Ends when the connection does. */
	async *imageEvents(address: string, signal: AbortSignal): AsyncGenerator<{ readonly namespace: string; readonly name: string }> {
		yield* this.#connect(address).imageEvents(signal);
	}

	#connect(address: string): ContainerdApi {
		const api = this.#connections.get(address) ?? new ContainerdApi(address);
		this.#connections.set(address, api);
		return api;
	}

	/** The blob's own file, which spares the way through containerd; undefined when this node has no such file. */
	async #blobFile(address: string, api: ContainerdApi, digest: string): Promise<string | undefined> {
		let folder = this.#contentFolders.get(address);
		if (folder === undefined) {
			// It is everybody's question, which nobody's cancellation ends. After a failure the next one asks again.
			folder = api.contentFolder({ timeoutMs: CALL_MS }).catch(() => {
				this.#contentFolders.delete(address);
				return undefined;
			});
			this.#contentFolders.set(address, folder);
		}
		const root = await folder;
		if (root === undefined) return undefined;
		const path = join(root, "blobs", digest.replace(":", "/"));
		return await access(path).then(
			() => path,
			() => undefined,
		);
	}
}

/**
 * The image of a descriptor's digest, or of one in its index.
 * @param targets several are looked through in order
 * @param chainId the first one for linux/amd64 when undefined
 * @param read gives a document; undefined when it is not there
 * @throws NoLayers when there is none with this chain id, or for this platform; when a document is not of its digest
 */
export async function contentFrom(
	targets: readonly string[],
	chainId: string | undefined,
	read: (digest: string) => Promise<Buffer | undefined>,
	open: (digest: string, signal: AbortSignal) => Promise<string | Readable>,
): Promise<ImageContent> {
	let last = `the image ${targets.join(", ")} is not in the content store`;
	const document = async <T extends v.GenericSchema>(schema: T, digest: string): Promise<v.InferOutput<T> | undefined> => {
		const bytes = await read(digest);
		// What root hashes and policies are made of must be what the digests say.
		if (bytes !== undefined && `sha256:${createHash("sha256").update(bytes).digest("hex")}` !== digest)
			throw new NoLayers(`the content ${digest} of the image is damaged: it has another digest`);
		return decode(schema, bytes);
	};
	const waiting = [...targets];
	for (let count = 0; waiting.length > 0 && count < MAX_MANIFESTS; count++) {
		const digest = waiting.shift() ?? "";
		const manifest = await document(DocumentSchema, digest);
		// Manifests of other platforms were not pulled.
		if (manifest === undefined) continue;
		waiting.push(...(manifest.manifests ?? []).map((one) => one.digest));
		if (manifest.config === undefined || manifest.layers === undefined) continue;
		const config = await document(ConfigSchema, manifest.config.digest);
		const diffIds = config?.rootfs.diff_ids ?? [];
		if (config === undefined || diffIds.length !== manifest.layers.length) {
			last = `the image ${digest} has no configuration that fits its layers`;
			continue;
		}
		// Attestations of builders are in an index as well, as images of an unknown platform.
		if (chainId === undefined && (config.os !== OS || config.architecture !== ARCHITECTURE)) {
			last = `the image ${digest} is for ${config.os}/${config.architecture}, and ${OS}/${ARCHITECTURE} is wanted`;
			continue;
		}
		if (chainId !== undefined && chainIdOf(diffIds) !== chainId) {
			last = `the image ${digest} has other layers than the container's snapshot`;
			continue;
		}
		const layers = manifest.layers.map((layer, index) => ({
			diffId: diffIds[index] ?? "",
			digest: layer.digest,
			open: (signal: AbortSignal) => open(layer.digest, signal),
		}));
		const defaults = v.safeParse(DefaultsSchema, config.config ?? {});
		return { layers, defaults: defaults.success ? defaults.output : undefined };
	}
	throw new NoLayers(last);
}

function decode<T extends v.GenericSchema>(schema: T, bytes: Buffer | undefined): v.InferOutput<T> | undefined {
	if (bytes === undefined) return undefined;
	try {
		const found = v.safeParse(schema, JSON.parse(bytes.toString("utf8")));
		return found.success ? found.output : undefined;
	} catch {
		return undefined;
	}
}

/** containerd's failure to answer is no failure of the container: what it can't tell is found otherwise. */
async function told<T>(answer: Promise<T>): Promise<T> {
	try {
		return await answer;
	} catch (error) {
		throw new NoLayers(`containerd does not tell: ${messageOf(error)}`, { cause: error });
	}
}

const plainMount = ({ type, source, target, options }: MountInfo): MountInfo => ({ type, source, target, options: [...options] });
