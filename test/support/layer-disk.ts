/**
 * Writes disks of layers as docs/contracts.md ("Layers") has them, independently of the host's own converter: EROFS images by mkfs.erofs, hash trees
 * as the kernel's documentation of dm-verity describes them, and a GPT (UEFI specification 2.10, section 5.3).
 */

import { createHash, randomBytes } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { crc32 } from "./crc32.ts";
import { runOk } from "./process.ts";

const BLOCK = 4096;
const SECTOR = 512;
const FIRST_SECTOR = 2048;
const ENTRIES = 128;
const ENTRY_BYTES = 128;
const HEADER_BYTES = 92;
/** The backup: the entries and the header. */
const BACKUP_SECTORS = 33;
const SALT = Buffer.alloc(32);
const MKFS_MS = 30_000;

/** One layer: where it lies on the disk, in bytes, and its root hash. */
export interface DiskLayer {
	/** Its partition's number, from 1. */
	readonly number: number;
	readonly start: number;
	readonly dataBytes: number;
	readonly treeBytes: number;
	readonly rootHash: string;
}

/** A disk with layers. */
export interface LayerDisk {
	readonly path: string;
	readonly bytes: number;
	readonly layers: readonly DiskLayer[];
}

/** Makes a disk in `folder` of folders that are the layers, the topmost first. */
export async function buildLayerDisk(folder: string, roots: readonly string[]): Promise<LayerDisk> {
	const parts: Buffer[] = [];
	const layers: DiskLayer[] = [];
	let start = FIRST_SECTOR * SECTOR;
	for (const [index, root] of roots.entries()) {
		const file = join(folder, `layer-${index}.erofs`);
		await runOk(["mkfs.erofs", "-T0", file, root], { timeoutMs: MKFS_MS });
		const raw = readFileSync(file);
		const data = Buffer.concat([raw, Buffer.alloc(-raw.length & (BLOCK - 1))]);
		const { tree, rootHash } = hashTree(data);
		layers.push({ number: index + 1, start, dataBytes: data.length, treeBytes: tree.length, rootHash });
		parts.push(data, tree);
		start += data.length + tree.length;
	}
	const path = join(folder, "layers.disk");
	const disk = Buffer.concat([Buffer.alloc(FIRST_SECTOR * SECTOR), ...parts, Buffer.alloc(5 * BLOCK)]);
	writeTables(disk, layers);
	writeFileSync(path, disk);
	return { path, bytes: disk.length, layers };
}

/** The storages of a container whose root file system these layers are. */
export function layerStorages(disk: LayerDisk, source: string, mountPoint: string): { options: string[] }[] {
	return disk.layers.map(({ number, dataBytes, rootHash }) => ({
		driver: "blk",
		source,
		fstype: "erofs",
		mount_point: mountPoint,
		options: [
			"ro",
			"X-kata.overlay-lower",
			"X-kata.multi-layer=true",
			"X-kata.gpt-partitioned=true",
			`X-kata.partition-number=${number}`,
			"X-kata.dmverity-enabled=true",
			`X-kata.dmverity.roothash=${rootHash}`,
			`X-kata.dmverity.hashoffset=${dataBytes}`,
			"X-kata.dmverity.no-superblock=true",
			`X-kata.dmverity.salt=${SALT.toString("hex")}`,
			"X-kata.dmverity.blocksize=4096",
			"X-kata.dmverity.hashsize=4096",
			"X-kata.dmverity.algorithm=sha256",
			"X-kata.dmverity.hashtype=1",
		],
	}));
}

const digest = (block: Buffer): Buffer => createHash("sha256").update(SALT).update(block).digest();

/** The levels of the tree, the topmost first, and the root hash: the digest of the topmost block. */
function hashTree(data: Buffer): { tree: Buffer; rootHash: string } {
	const levels: Buffer[] = [];
	let level = data;
	while (level.length > BLOCK) {
		const digests: Buffer[] = [];
		for (let at = 0; at < level.length; at += BLOCK) digests.push(digest(level.subarray(at, at + BLOCK)));
		const joined = Buffer.concat(digests);
		level = Buffer.concat([joined, Buffer.alloc(-joined.length & (BLOCK - 1))]);
		levels.unshift(level);
	}
	return { tree: Buffer.concat(levels), rootHash: digest(level).toString("hex") };
}

function writeTables(disk: Buffer, layers: readonly DiskLayer[]): void {
	const sectors = disk.length / SECTOR;
	const entries = Buffer.alloc(ENTRIES * ENTRY_BYTES);
	for (const { number, start, dataBytes, treeBytes } of layers) {
		const at = (number - 1) * ENTRY_BYTES;
		entries.write("af3dc60f838472478e793d69d8477de4", at, "hex");
		randomBytes(16).copy(entries, at + 16);
		entries.writeBigUInt64LE(BigInt(start / SECTOR), at + 32);
		entries.writeBigUInt64LE(BigInt((start + dataBytes + treeBytes) / SECTOR - 1), at + 40);
	}
	const places = [
		{ own: 1, other: sectors - 1, table: 2 },
		{ own: sectors - 1, other: 1, table: sectors - BACKUP_SECTORS },
	];
	for (const { own, other, table } of places) {
		const header = disk.subarray(own * SECTOR, own * SECTOR + HEADER_BYTES);
		header.write("EFI PART");
		header.writeUInt32LE(0x1_0000, 8);
		header.writeUInt32LE(HEADER_BYTES, 12);
		header.writeBigUInt64LE(BigInt(own), 24);
		header.writeBigUInt64LE(BigInt(other), 32);
		header.writeBigUInt64LE(34n, 40);
		header.writeBigUInt64LE(BigInt(sectors - BACKUP_SECTORS - 1), 48);
		header.fill(7, 56, 72);
		header.writeBigUInt64LE(BigInt(table), 72);
		header.writeUInt32LE(ENTRIES, 80);
		header.writeUInt32LE(ENTRY_BYTES, 84);
		header.writeUInt32LE(crc32(entries), 88);
		header.writeUInt32LE(crc32(header), 16);
		entries.copy(disk, table * SECTOR);
	}
}
