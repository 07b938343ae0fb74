/** Single small files of an image, as its layers have them one over the other. */

import type { ImageLayer } from "./image-layers.ts";
import { readLayerFiles } from "./layer-program.ts";
import type { Bounds } from "./layer-program.ts";

/**
 * The contents of files as the topmost layer with them has them; undefined for those that the image does not have, or that are no plain files.
 * @param layers the lowest first; each is read to its end and must have its digests
 * @param paths without a leading slash: `etc/passwd`
 * @throws ShimError as `readLayerFiles`
 */
export async function imageFiles(layers: readonly ImageLayer[], paths: readonly string[], bounds: Bounds): Promise<(string | undefined)[]> {
	const found = new Map<string, string | null>();
	for (const { diffId, digest, open } of layers.toReversed()) {
		const missing = paths.filter((path) => !found.has(path));
		if (missing.length === 0) break;
		const blob = await open(bounds.signal ?? AbortSignal.timeout(bounds.timeoutMs));
		const files = await readLayerFiles({ diffId, digest, blob, paths: missing, ...bounds });
		for (const [path, text] of Object.entries(files)) found.set(path, text);
	}
	return paths.map((path) => found.get(path) ?? undefined);
}
