/**
 * Writes the empty file system that the agent puts on scratch disks: `node make-empty-btrfs.mjs OUTPUT`. Needs mkfs.btrfs and btrfs (btrfs-progs).
 *
 * The result is committed: mkfs.btrfs makes new identifiers and times at each run, and the guest's image must follow from the sources. It holds the blocks
 * of a btrfs of 48 MiB (SHA-256 checksums, nothing twice) that something refers to, one after the other: u64 offset, u32 length, u16 bytes at its
 * beginning, u16 bytes at its end (little-endian), then these bytes; in between are zeros.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const BYTES = 48 * 1024 * 1024;
const SUPERBLOCK = { offset: 64 * 1024, length: 4096 };
const NODE_BYTES = 16 * 1024;

const [output] = process.argv.slice(2);
if (output === undefined) {
	console.error("usage: make-empty-btrfs.mjs OUTPUT");
	process.exit(2);
}
const folder = mkdtempSync(join(tmpdir(), "empty-btrfs-"));
try {
	const image = join(folder, "image");
	writeFileSync(image, "");
	truncateSync(image, BYTES);
	execFileSync("mkfs.btrfs", ["-q", "-m", "single", "-d", "single", "--csum", "sha256", "-K", image]);
	const tree = execFileSync("btrfs", ["inspect-internal", "dump-tree", image], { encoding: "utf8" });
	// The metadata's logical addresses are the disk's own: mkfs.btrfs maps its first chunks one to one.
	const leaves = [...tree.matchAll(/^leaf ([0-9]+) items/gm)].map((found) => ({ offset: Number(found[1]), length: NODE_BYTES }));
	const bytes = readFileSync(image);
	writeFileSync(output, Buffer.concat([...leaves, SUPERBLOCK].map(({ offset, length }) => record(bytes, offset, length))));
} finally {
	rmSync(folder, { recursive: true, force: true });
}

/** @param {Buffer} image @param {number} offset @param {number} length */
function record(image, offset, length) {
	const block = image.subarray(offset, offset + length);
	const used = Array.from(block.keys()).filter((at) => block[at] !== 0);
	// The longest run of zeros is what is left out.
	let [headEnd, tailStart] = [length, length];
	let longest = 0;
	for (const [index, at] of used.entries()) {
		const next = used[index + 1] ?? length;
		if (next - at > longest) [longest, headEnd, tailStart] = [next - at, at + 1, next];
	}
	const head = Buffer.alloc(16);
	head.writeBigUInt64LE(BigInt(offset), 0);
	head.writeUInt32LE(length, 8);
	head.writeUInt16LE(headEnd, 12);
	head.writeUInt16LE(length - tailStart, 14);
	return Buffer.concat([head, block.subarray(0, headEnd), block.subarray(tailStart)]);
}
