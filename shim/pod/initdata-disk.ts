/**
 * The disk by which a confidential guest gets its initdata (Kata Containers, "Initdata"; docs/contracts.md): `initdata`, the length as 64 bits little
 * endian, gzip of the TOML, filled up to whole sectors.
 */

import { readFile } from "node:fs/promises";
import { join } from "node:path";

import { errnoOf, messageOf, ShimError } from "../base/errors.ts";
import { replaceFile } from "../base/replace-file.ts";
import type { BootDisk } from "./boot.ts";

/** The disk's id in the VM and its serial in the guest. */
export const INITDATA_DISK = "initdata";

const MAGIC = Buffer.from("initdata");
const LENGTH_BYTES = 8;
const SECTOR_BYTES = 512;
const FILE = "initdata.img";

/** The disk's bytes. @param gzip the packed initdata */
export function initdataImage(gzip: Uint8Array): Buffer {
	const used = MAGIC.length + LENGTH_BYTES + gzip.length;
	const image = Buffer.alloc(Math.ceil(used / SECTOR_BYTES) * SECTOR_BYTES);
	MAGIC.copy(image);
	image.writeBigUInt64LE(BigInt(gzip.length), MAGIC.length);
	image.set(gzip, MAGIC.length + LENGTH_BYTES);
	return image;
}

/**
 * Writes the disk's file.
 * @param podFolder the pod's own folder; the file goes with it
 * @throws ShimError `journal.write`
 */
export function writeInitdataDisk(podFolder: string, gzip: Uint8Array): BootDisk {
	const path = join(podFolder, FILE);
	try {
		// A VM that waited has another one of that name open, which must stay as it is.
		replaceFile(path, initdataImage(gzip));
	} catch (error) {
		throw new ShimError("journal.write", `the pod's initdata can't be written to ${path}: ${messageOf(error)}`, { cause: error });
	}
	return { id: INITDATA_DISK, path };
}

/** The packed initdata that a pod's guest was given; undefined when it was given none. @throws Error when the file can't be read */
export async function readInitdataDisk(podFolder: string): Promise<Uint8Array | undefined> {
	try {
		const image = await readFile(join(podFolder, FILE));
		const start = MAGIC.length + LENGTH_BYTES;
		if (image.length < start || !image.subarray(0, MAGIC.length).equals(MAGIC)) return undefined;
		return image.subarray(start, start + Number(image.readBigUInt64LE(MAGIC.length)));
	} catch (error) {
		if (errnoOf(error) === "ENOENT") return undefined;
		throw error;
	}
}
