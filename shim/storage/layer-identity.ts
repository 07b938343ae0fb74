/** What tells one set of layers from another, without reading them. */

import { createHash } from "node:crypto";
import { readdir, realpath, stat } from "node:fs/promises";

import { errnoOf, messageOf, ShimError } from "../base/errors.ts";
import type { Layer } from "./rootfs-plan.ts";

/** Changes whenever the conversion would give other bytes for the same layers. */
const CONVERSION = "erofs-1";

/**
 * The key of an image made of these layers: their real paths, devices, inodes, times of birth and of change. A snapshot that is removed and made again
 * at the same path gets another key.
 * @throws ShimError storage.mount when a layer is not there
 */
export async function imageKey(layers: readonly Layer[], overlayOptions: readonly string[]): Promise<string> {
	const identities = await Promise.all(layers.map(identityOf));
	return createHash("sha256")
		.update(JSON.stringify([CONVERSION, overlayOptions, identities]))
		.digest("hex")
		.slice(0, 40);
}

async function identityOf(layer: Layer): Promise<string[]> {
	const path = layer.kind === "folder" ? layer.path : layer.source;
	const further = layer.kind === "folder" ? [] : [layer.type, layer.folder, ...layer.options];
	try {
		const real = await realpath(path);
		const stats = await stat(real, { bigint: true });
		return [real, ...[stats.dev, stats.ino, stats.ctimeNs, stats.birthtimeNs].map(String), ...further];
	} catch (error) {
		throw missing(path, error);
	}
}

/**
 * True when a writable layer holds nothing. An image counts as empty while its file does not exist: containerd's mount manager would make it.
 * @throws ShimError storage.mount when it can't be told
 */
export async function isEmptyLayer(layer: Layer): Promise<boolean> {
	try {
		if (layer.kind === "image") {
			await stat(layer.source);
			return false;
		}
		return (await readdir(layer.path)).length === 0;
	} catch (error) {
		if (layer.kind === "image" && errnoOf(error) === "ENOENT") return true;
		throw missing(layer.kind === "folder" ? layer.path : layer.source, error);
	}
}

/**
 * Looks whether all layers are there: a converter's own words would not name the one that is not.
 * @throws ShimError storage.mount that names it
 */
export async function requireLayers(layers: readonly Layer[]): Promise<void> {
	for (const layer of layers) {
		const path = layer.kind === "folder" ? layer.path : layer.source;
		await stat(path).catch((error: unknown) => {
			throw missing(path, error);
		});
	}
}

function missing(path: string, error: unknown): ShimError {
	return new ShimError("storage.mount", `the root filesystem's layer ${path}: ${messageOf(error)}`, { cause: error });
}
