/**
 * Reads a file or a folder of the host, entry by entry, to be copied elsewhere. The host's files may change meanwhile, by hands that nobody
 * trusts: folders are entered through descriptors, links are told and not followed, and there is a bound on everything.
 */

import { constants } from "node:fs";
import type { BigIntStats } from "node:fs";
import { lstat, open, opendir, readlink, stat } from "node:fs/promises";
import type { FileHandle } from "node:fs/promises";

import { errnoOf, messageOf, ShimError } from "../base/errors.ts";

/** Mode bits and owner of an entry. */
export interface Attributes {
	/** The lower twelve bits of a mode. */
	readonly mode: number;
	readonly uid: number;
	readonly gid: number;
}

/** One entry, or one piece of a plain file. `path`: names joined by slashes, below what is read; empty for itself. */
export type TreeEntry = { readonly path: Buffer } & (
	| ({ readonly kind: "folder" } & Attributes)
	| ({
			readonly kind: "piece";
			readonly offset: number;
			readonly data: Buffer;
			/** What the file had when it was opened; the last piece ends there, or earlier when the file was cut. */
			readonly sizeBytes: number;
			readonly last: boolean;
			readonly modifiedNs: bigint;
	  } & Attributes)
	| ({ readonly kind: "link"; readonly target: Buffer } & Attributes)
	/** A second name of a file that came before. */
	| { readonly kind: "hard-link"; readonly first: Buffer }
	/** What can't be copied, in a word. */
	| { readonly kind: "left-out"; readonly what: string }
);

/** How to read. */
export interface TreeOptions {
	readonly path: string;
	readonly maxBytes: number;
	readonly maxEntries: number;
	/** File systems (`major:minor`) that are the kernel's own, and left out. */
	readonly kernelDevices: ReadonlySet<string>;
	/** Whether further names of a file are told as such; else each is a file of its own. */
	readonly hardLinks: boolean;
	readonly signal?: AbortSignal | undefined;
}

/** What a file or folder comes to. */
export interface TreeSize {
	readonly bytes: number;
	readonly entries: number;
	/** False when reading stopped at `maxEntries`. */
	readonly complete: boolean;
}

/** One piece of a file. */
const PIECE_BYTES = 1024 * 1024;
/** Folders inside each other. */
const MAX_DEPTH = 200;
const OPEN_FLAGS = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK | constants.O_NOCTTY;
const MODE_BITS = 0o7777;
const SLASH = Buffer.from("/");

const isGone = (error: unknown): boolean => {
	const code = errnoOf(error);
	return code === "ENOENT" || code === "ESTALE" || code === "ENOTDIR" || code === "ELOOP";
};

/** The number of a file system as the table of mounts writes it (makedev(3)). */
export function deviceName(device: bigint): string {
	const major = ((device >> 8n) & 0xfffn) | ((device >> 32n) & ~0xfffn);
	const minor = (device & 0xffn) | ((device >> 12n) & ~0xffn);
	return `${major}:${minor}`;
}

/** The error of a volume's path that is not there (any more). */
export function missing(path: string): ShimError {
	return new ShimError("volume.missing", `the path ${path} of the node, which the container mounts, is not there`);
}

function attributes(stats: BigIntStats): Attributes {
	return { mode: Number(stats.mode) & MODE_BITS, uid: Number(stats.uid), gid: Number(stats.gid) };
}

function leftOut(stats: BigIntStats): string | undefined {
	if (stats.isSocket()) return "socket";
	if (stats.isFIFO()) return "FIFO";
	if (stats.isBlockDevice() || stats.isCharacterDevice()) return "device";
	return undefined;
}

/** Reads one file or folder. */
class Reader {
	readonly #options: TreeOptions;
	/** Whether contents of files are read. */
	readonly #contents: boolean;
	/** First names of files that have several, by device and number. */
	readonly #names = new Map<string, Buffer>();
	bytes = 0;
	entries = 0;

	constructor(options: TreeOptions, contents: boolean) {
		this.#options = options;
		this.#contents = contents;
	}

	async *read(): AsyncGenerator<TreeEntry> {
		const { path } = this.#options;
		// The source itself may be a link: a mount of it would follow it, too.
		const handle = await open(path, OPEN_FLAGS & ~constants.O_NOFOLLOW).catch((error: unknown) => {
			throw isGone(error) ? missing(path) : failure(path, error);
		});
		try {
			const stats = await handle.stat({ bigint: true });
			if (stats.isDirectory()) yield* this.#folder(handle, stats, Buffer.alloc(0), 0);
			else if (stats.isFile()) yield* this.#file(handle, stats, Buffer.alloc(0));
			else throw new ShimError("volume.copy", `${path} is neither a file nor a folder any more`);
			const now = await stat(path, { bigint: true }).catch((error: unknown) => {
				throw isGone(error) ? missing(path) : failure(path, error);
			});
			if (now.ino !== stats.ino || now.dev !== stats.dev) throw missing(path);
		} catch (error) {
			throw error instanceof ShimError ? error : failure(path, error);
		} finally {
			await handle.close();
		}
	}

	#count(bytes: number): void {
		const { path, maxBytes, maxEntries } = this.#options;
		this.entries += 1;
		this.bytes += bytes;
		if (!this.#contents) return;
		if (this.entries > maxEntries || this.bytes > maxBytes) throw tooLarge(path, this, this.#options);
	}

	async *#folder(handle: FileHandle, stats: BigIntStats, path: Buffer, depth: number): AsyncGenerator<TreeEntry> {
		this.#count(0);
		yield { kind: "folder", path, ...attributes(stats) };
		if (depth > MAX_DEPTH) throw new ShimError("volume.copy", `${this.#options.path} has more than ${MAX_DEPTH} folders inside each other`);
		const at = Buffer.from(`/proc/self/fd/${handle.fd}/`);
		const names = await opendir(`/proc/self/fd/${handle.fd}`, { encoding: "buffer" as BufferEncoding });
		for await (const { name } of names) {
			this.#options.signal?.throwIfAborted();
			if (!this.#contents && this.entries > this.#options.maxEntries) return;
			// With this encoding a name is its bytes, which the types of Node.js don't say.
			const bytes = Buffer.from(name);
			const below = path.length === 0 ? bytes : Buffer.concat([path, SLASH, bytes]);
			yield* this.#entry(Buffer.concat([at, bytes]), below, stats.dev, depth);
		}
	}

	/** An entry that goes while it is looked at is none. */
	async *#entry(place: Buffer, path: Buffer, device: bigint, depth: number): AsyncGenerator<TreeEntry> {
		const stats = await ifThere(lstat(place, { bigint: true }));
		if (stats === undefined) return;
		const what = leftOut(stats);
		if (what !== undefined) {
			yield { kind: "left-out", path, what };
		} else if (stats.isSymbolicLink()) {
			const target = await ifThere(readlink(place, { encoding: "buffer" }));
			if (target === undefined) return;
			this.#count(0);
			yield { kind: "link", path, target, ...attributes(stats) };
		} else {
			const handle = await ifThere(open(place, OPEN_FLAGS));
			if (handle === undefined) return;
			try {
				yield* this.#opened(handle, path, device, depth);
			} finally {
				await handle.close();
			}
		}
	}

	async *#opened(handle: FileHandle, path: Buffer, device: bigint, depth: number): AsyncGenerator<TreeEntry> {
		const stats = await handle.stat({ bigint: true });
		if (stats.dev !== device && this.#options.kernelDevices.has(deviceName(stats.dev))) {
			yield { kind: "left-out", path, what: "file system of the kernel" };
		} else if (stats.isDirectory()) {
			yield* this.#folder(handle, stats, path, depth + 1);
		} else if (stats.isFile()) {
			const number = `${stats.dev}:${stats.ino}`;
			const first = this.#options.hardLinks && stats.nlink > 1n ? this.#names.get(number) : undefined;
			if (first === undefined) {
				yield* this.#file(handle, stats, path);
				if (stats.nlink > 1n) this.#names.set(number, path);
			} else {
				this.#count(0);
				yield { kind: "hard-link", path, first };
			}
		}
	}

	async *#file(handle: FileHandle, stats: BigIntStats, path: Buffer): AsyncGenerator<TreeEntry> {
		const sizeBytes = Number(stats.size);
		this.#count(sizeBytes);
		if (!this.#contents) return;
		const common = { kind: "piece", path, sizeBytes, modifiedNs: stats.mtimeNs, ...attributes(stats) } as const;
		for (let offset = 0, last = false; !last; ) {
			this.#options.signal?.throwIfAborted();
			const data = Buffer.allocUnsafe(Math.min(PIECE_BYTES, sizeBytes - offset));
			const { bytesRead } = data.length === 0 ? { bytesRead: 0 } : await handle.read(data, 0, data.length, offset);
			last = bytesRead === 0 || offset + bytesRead === sizeBytes;
			yield { ...common, offset, data: data.subarray(0, bytesRead), last };
			offset += bytesRead;
		}
	}
}

async function ifThere<T>(look: Promise<T>): Promise<T | undefined> {
	try {
		return await look;
	} catch (error) {
		if (isGone(error)) return undefined;
		throw error;
	}
}

function failure(path: string, error: unknown): ShimError {
	return new ShimError("volume.copy", `the volume ${path} can't be read: ${messageOf(error)}`, { cause: error });
}

const mib = (bytes: number): string => `${(bytes / 1024 / 1024).toFixed(1)} MiB`;

/** The error of a volume that is over a bound; names its size and the key of the configuration. */
export function tooLarge(path: string, size: Omit<TreeSize, "complete">, bound: Pick<TreeOptions, "maxBytes" | "maxEntries">): ShimError {
	const many = size.entries > bound.maxEntries;
	const what = many
		? `has more than ${bound.maxEntries} files, folders and links (storage.copy_max_entries)`
		: `has ${mib(size.bytes)}, and at most ${mib(bound.maxBytes)} are copied (storage.copy_max_mib)`;
	return new ShimError("volume.too-large", `the volume ${path} is copied into the VM: it ${what}`);
}

/**
 * Adds up what a file or folder comes to, without reading files; stops after `maxEntries` entries.
 * @throws ShimError `volume.missing`, `volume.copy`
 */
export async function measureTree(options: TreeOptions): Promise<TreeSize> {
	const reader = new Reader(options, false);
	for await (const entry of reader.read()) if (reader.entries > options.maxEntries && entry.kind !== "folder") break;
	return { bytes: reader.bytes, entries: reader.entries, complete: reader.entries <= options.maxEntries };
}

/**
 * Reads a file or a folder with all that is in it: folders before what they hold, files in pieces of at most 1 MiB. What goes meanwhile is
 * passed over, unless it is the path itself.
 * @throws ShimError `volume.missing`, `volume.too-large`, `volume.copy`; the signal's reason
 */
export function readTree(options: TreeOptions): AsyncGenerator<TreeEntry> {
	return new Reader(options, true).read();
}
