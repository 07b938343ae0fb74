/**
 * Layers of containerd's erofs snapshotter (containerd 2.1 and later): each is an EROFS image, `layer.erofs`, already. Where the snapshotter has made
 * a hash tree, it lies in the same file, and `layer.erofs.dmverity` tells the root hash and where; a superblock of dm-verity before the tree
 * has the salt (cryptsetup, "DMVerity", on-disk format).
 */

import { open, readFile } from "node:fs/promises";

import * as v from "valibot";

import type { DiskSource } from "./layer-program.ts";
import type { Layer } from "./rootfs-plan.ts";

const METADATA_SUFFIX = ".dmverity";
const MAX_METADATA_BYTES = 64 * 1024;
const BLOCK_BYTES = 4096;
const SUPERBLOCK_BYTES = 512;
const SIGNATURE = Buffer.from("verity\0\0", "latin1");
const MAX_SALT_BYTES = 256;
const ZERO_SALT = "0".repeat(64);

const MetadataSchema = v.object({
	roothash: v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/)),
	hashoffset: v.pipe(v.number(), v.safeInteger(), v.minValue(BLOCK_BYTES), v.multipleOf(BLOCK_BYTES)),
});

/** The files of layers that are whole EROFS images each, topmost first; undefined when there are others among them. */
export function erofsFiles(layers: readonly Layer[]): string[] | undefined {
	const files = layers.map((layer) =>
		layer.kind === "image" && layer.type === "erofs" && layer.folder === "" && layer.options.length === 0 ? layer.source : undefined,
	);
	return files.length > 0 && files.every((file) => file !== undefined) ? files : undefined;
}

/** What a disk is told of such a layer: with its hash tree, when there is one of the only kind that guests are told of. */
export async function erofsSource(image: string, diffId: string): Promise<DiskSource> {
	const tree = await treeOf(image).catch(() => undefined);
	return tree === undefined ? { image, diffId } : { image, diffId, tree };
}

type Tree = { readonly dataBytes: number; readonly treeOffset: number; readonly rootHash: string; readonly salt: string };

async function treeOf(image: string): Promise<Tree | undefined> {
	const text = await readFile(image + METADATA_SUFFIX);
	if (text.length > MAX_METADATA_BYTES) return undefined;
	const { roothash, hashoffset } = v.parse(MetadataSchema, JSON.parse(text.toString("utf8")));
	const file = await open(image);
	try {
		const { buffer, bytesRead } = await file.read(Buffer.alloc(SUPERBLOCK_BYTES), 0, SUPERBLOCK_BYTES, hashoffset);
		if (bytesRead < SUPERBLOCK_BYTES || !buffer.subarray(0, SIGNATURE.length).equals(SIGNATURE))
			return { dataBytes: hashoffset, treeOffset: hashoffset, rootHash: roothash, salt: ZERO_SALT };
		const superblock = readSuperblock(buffer);
		if (superblock === undefined) return undefined;
		return { ...superblock, treeOffset: hashoffset + BLOCK_BYTES, rootHash: roothash };
	} finally {
		await file.close();
	}
}

/** Version 1 at offset 8, then hash type, UUID, algorithm, sizes of data and hash blocks, number of data blocks, length of the salt, and the salt. */
function readSuperblock(bytes: Buffer): { readonly dataBytes: number; readonly salt: string } | undefined {
	const algorithm = bytes.toString("latin1", 32, 64).replace(/\0.*$/s, "");
	const known =
		bytes.readUInt32LE(8) === 1 &&
		bytes.readUInt32LE(12) === 1 &&
		algorithm === "sha256" &&
		bytes.readUInt32LE(64) === BLOCK_BYTES &&
		bytes.readUInt32LE(68) === BLOCK_BYTES;
	const saltBytes = bytes.readUInt16LE(80);
	const dataBytes = bytes.readBigUInt64LE(72) * BigInt(BLOCK_BYTES);
	if (!known || saltBytes > MAX_SALT_BYTES || dataBytes > BigInt(Number.MAX_SAFE_INTEGER)) return undefined;
	return { dataBytes: Number(dataBytes), salt: bytes.toString("hex", 88, 88 + saltBytes) };
}
