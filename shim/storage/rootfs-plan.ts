/**
 * From containerd's mounts to the layers of a root filesystem. Pure: nothing is looked up here.
 *
 * Snapshotters give one bind mount (native, and a single layer of overlayfs), one overlay, one EROFS file, or a list whose last entry
 * refers to the earlier ones by templates of containerd's mount manager: `{{ mount N }}` is where entry N would be mounted,
 * `{{ overlay N M }}` a range of them as a list of lower directories.
 */

import { ShimError } from "../base/errors.ts";

/** A mount in containerd's form (`containerd.types.Mount`). */
export interface RootfsMount {
	readonly type: string;
	readonly source: string;
	readonly target: string;
	readonly options: readonly string[];
}

/** A folder of the host. */
export interface FolderLayer {
	readonly kind: "folder";
	readonly path: string;
}

/** A file or block device with a file system in it; `folder` is the part below its root that counts, empty for all of it. */
export interface ImageLayer {
	readonly kind: "image";
	readonly type: string;
	readonly source: string;
	/** What the file system reads; nothing of it makes the mount writable. */
	readonly options: readonly string[];
	readonly folder: string;
}

export type Layer = FolderLayer | ImageLayer;

/** What a root filesystem consists of. */
export interface RootfsPlan {
	/** At least one, topmost first. */
	readonly lowers: readonly Layer[];
	/** The writable layer above them: nothing in it means that it does not count. */
	readonly upper: Layer | undefined;
	/** Options of the overlay that change how the layers are read. */
	readonly overlayOptions: readonly string[];
	/** True when the lower layers never change once they exist. */
	readonly immutable: boolean;
}

/** Prefixes of types by which containerd's mount manager is told what to do before it mounts. */
const MANAGER_PREFIX = /^(?:format\/|mkdir\/|mkfs\/|dmverity\/)+/;
/** Options that are for containerd or for the act of mounting, not for the file system. */
const NOT_FOR_FILE_SYSTEM = /^(?:X-containerd\..*|ro|rw|loop|r?bind|defaults)$/;
const OVERLAY_READING = /^(?:userxattr|redirect_dir=.*|metacopy=.*)$/;

/**
 * Finds the layers.
 * @param rootfsFolder the root filesystem when there are no mounts
 * @throws ShimError storage.mount when the list is not of a kind that is known
 */
export function planRootfs(mounts: readonly RootfsMount[], rootfsFolder: string): RootfsPlan {
	const last = mounts.at(-1);
	if (last === undefined)
		return { lowers: [{ kind: "folder", path: rootfsFolder }], upper: undefined, overlayOptions: [], immutable: false };
	const nested = mounts.find((mount) => mount.target !== "");
	if (nested !== undefined) throw unknown(nested, `a target below the root: ${nested.target}`);
	const earlier = mounts.slice(0, -1);
	switch (bareType(last)) {
		case "overlay":
			return planOverlay(last, earlier);
		case "bind":
			return planBind(last, earlier);
		default: {
			if (earlier.length > 0) throw unknown(last, "a list of mounts that does not end in an overlay or a bind mount");
			const layer = imageLayer(last, "");
			return { lowers: [layer], upper: undefined, overlayOptions: [], immutable: isImmutable(layer, false) };
		}
	}
}

function planBind(mount: RootfsMount, earlier: readonly RootfsMount[]): RootfsPlan {
	const layer = layerAt(mount.source, mount, earlier);
	const immutable = isImmutable(layer, mount.options.includes("ro"));
	return { lowers: [layer], upper: undefined, overlayOptions: [], immutable };
}

function planOverlay(mount: RootfsMount, earlier: readonly RootfsMount[]): RootfsPlan {
	const value = (name: string): string | undefined =>
		mount.options.findLast((option) => option.startsWith(`${name}=`))?.slice(name.length + 1);
	const lowerdir = value("lowerdir");
	if (lowerdir === undefined || lowerdir === "") throw unknown(mount, "an overlay without lowerdir");
	const lowers = splitLowers(lowerdir, mount).map((text) => layerAt(text, mount, earlier));
	const upperdir = value("upperdir");
	return {
		lowers,
		upper: upperdir === undefined ? undefined : layerAt(upperdir, mount, earlier),
		overlayOptions: mount.options.filter((option) => OVERLAY_READING.test(option)),
		// Lower directories of an overlay are committed snapshots.
		immutable: lowers.every((layer) => isImmutable(layer, true)),
	};
}

/** Splits `lowerdir` at its colons (a backslash escapes one) after writing ranges out. */
function splitLowers(lowerdir: string, mount: RootfsMount): string[] {
	const written = lowerdir.replace(/\{\{\s*overlay\s+([0-9]{1,4})\s+([0-9]{1,4})\s*\}\}/g, (_match, first: string, last: string) =>
		range(Number(first), Number(last)),
	);
	const parts = written.match(/(?:\\.|[^:\\])+/g) ?? [];
	if (parts.length !== written.replace(/\\./g, "").split(":").length) throw unknown(mount, `lowerdir ${lowerdir}`);
	return parts.map((part) => part.replace(/\\(.)/g, "$1"));
}

function range(first: number, last: number): string {
	const step = first <= last ? 1 : -1;
	return Array.from({ length: Math.abs(last - first) + 1 }, (_, index) => `{{ mount ${first + index * step} }}`).join(":");
}

/** A path, or a folder below the place where an earlier mount would be. */
function layerAt(text: string, mount: RootfsMount, earlier: readonly RootfsMount[]): Layer {
	const template = /^\{\{\s*mount\s+([0-9]{1,4})\s*\}\}(\/.*)?$/.exec(text);
	if (template === null) {
		if (!text.startsWith("/") || text.includes("{{")) throw unknown(mount, `the path ${JSON.stringify(text)}`);
		return { kind: "folder", path: text };
	}
	const referred = earlier[Number(template[1])];
	if (referred === undefined) throw unknown(mount, `${text}, with ${earlier.length} mounts before it`);
	const folder = template[2] ?? "";
	return bareType(referred) === "bind" ? { kind: "folder", path: referred.source + folder } : imageLayer(referred, folder);
}

function imageLayer(mount: RootfsMount, folder: string): ImageLayer {
	const type = bareType(mount);
	if (!/^[a-z0-9]+$/.test(type) || !mount.source.startsWith("/")) throw unknown(mount, `type ${JSON.stringify(mount.type)}`);
	return {
		kind: "image",
		type,
		source: mount.source,
		options: mount.options.filter((option) => option !== "" && !NOT_FOR_FILE_SYSTEM.test(option)),
		folder,
	};
}

function isImmutable(layer: Layer, folderIs: boolean): boolean {
	return layer.kind === "folder" ? folderIs : layer.type === "erofs";
}

function bareType(mount: RootfsMount): string {
	return mount.type.replace(MANAGER_PREFIX, "");
}

function unknown(mount: RootfsMount, what: string): ShimError {
	return new ShimError("storage.mount", `the root filesystem's mount of ${mount.type} ${mount.source} is not understood: ${what}`, {
		remedy: "use the overlayfs, native or erofs snapshotter for this runtime class",
	});
}
