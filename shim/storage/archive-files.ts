/** Single small files of an image, read from its layers' archives (OCI image specification, layer.md; ustar as in POSIX.1-2024, pax). */

import { createReadStream } from "node:fs";
import type { Readable } from "node:stream";
import { createGunzip } from "node:zlib";

import { messageOf, ShimError } from "../base/errors.ts";
import type { ImageLayer } from "./image-layers.ts";

const BLOCK_BYTES = 512;
const MAX_FILE_BYTES = 1024 * 1024;
/** Blocks without an end: an archive that is none. */
const MAX_NAME_BYTES = 64 * 1024;
const OPAQUE = ".wh..wh..opq";
const GZIP = Buffer.from([0x1f, 0x8b]);
const ZSTD = Buffer.from([0x28, 0xb5, 0x2f, 0xfd]);

/**
 * The contents of files as the topmost layer with them has them; undefined for those that the image does not have, or that are no plain files.
 * @param layers the lowest first
 * @param paths without a leading slash, in one folder each: `etc/passwd`
 * @throws ShimError storage.layer for an archive that can't be read
 */
export async function imageFiles(
	layers: readonly ImageLayer[],
	paths: readonly string[],
	signal: AbortSignal,
): Promise<(string | undefined)[]> {
	const found = new Map<string, string | undefined>();
	for (const layer of layers.toReversed()) {
		const missing = paths.filter((path) => !found.has(path));
		if (missing.length === 0) break;
		for (const [path, text] of await layerFiles(layer, missing, signal)) found.set(path, text);
	}
	return paths.map((path) => found.get(path));
}

/** What one layer says of the paths: a text, or undefined for what it hides. */
async function layerFiles(layer: ImageLayer, paths: readonly string[], signal: AbortSignal): Promise<Map<string, string | undefined>> {
	const told = new Map<string, string | undefined>();
	const hidden = new Set<string>();
	try {
		for await (const { name, isFile, data } of entriesOf(await opened(layer, signal), new Set(paths))) {
			if (paths.includes(name)) told.set(name, isFile ? data?.toString("utf8") : undefined);
			for (const path of paths) if (hides(name, path)) hidden.add(path);
		}
	} catch (error) {
		if (error instanceof ShimError) throw error;
		throw new ShimError("storage.layer", `the layer ${layer.digest} can't be read: ${messageOf(error)}`, { cause: error });
	}
	for (const path of hidden) if (!told.has(path)) told.set(path, undefined);
	return told;
}

/** A whiteout of the file, of a folder above it, or of all that lower layers have in one. */
function hides(name: string, path: string): boolean {
	const parts = path.split("/");
	return parts.some((part, index) => {
		const folder = parts
			.slice(0, index)
			.map((one) => `${one}/`)
			.join("");
		return name === `${folder}.wh.${part}` || (index > 0 && name === `${folder}${OPAQUE}`);
	});
}

async function opened(layer: ImageLayer, signal: AbortSignal): Promise<AsyncIterable<Buffer>> {
	const blob = await layer.open(signal);
	const source: Readable = typeof blob === "string" ? createReadStream(blob, { signal }) : blob;
	const chunks = source[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
	const first = await chunks.next();
	const head = first.done === true ? Buffer.alloc(0) : first.value;
	async function* all(): AsyncGenerator<Buffer> {
		yield head;
		for (let next = await chunks.next(); next.done !== true; next = await chunks.next()) yield next.value;
	}
	if (head.subarray(0, 4).equals(ZSTD)) {
		throw new ShimError("storage.layer", `the layer ${layer.digest} is packed with zstd, in which account files are not looked for`, {
			remedy: "set securityContext.runAsUser and runAsGroup in the pod",
		});
	}
	if (!head.subarray(0, 2).equals(GZIP)) return all();
	const { Readable: Stream } = await import("node:stream");
	const unpacked = createGunzip();
	const packed = Stream.from(all());
	packed.on("error", (error) => unpacked.destroy(error));
	return packed.pipe(unpacked) as AsyncIterable<Buffer>;
}

interface Entry {
	readonly name: string;
	readonly isFile: boolean;
	readonly data: Buffer | undefined;
}

/** The entries of an archive; contents of the wanted ones. */
async function* entriesOf(source: AsyncIterable<Buffer>, wanted: ReadonlySet<string>): AsyncGenerator<Entry> {
	const reader = new ByteReader(source);
	let longName: string | undefined;
	for (;;) {
		const header = await reader.read(BLOCK_BYTES);
		if (header === undefined || header.every((byte) => byte === 0)) return;
		const type = String.fromCharCode(header[156] ?? 0);
		const size = sizeOf(header);
		const padded = Math.ceil(size / BLOCK_BYTES) * BLOCK_BYTES;
		if (type === "x" || type === "L") {
			if (padded > MAX_NAME_BYTES) throw new Error("a header of the archive is too long");
			const text = ((await reader.read(padded)) ?? Buffer.alloc(0)).subarray(0, size);
			longName = type === "L" ? textOf(text, 0, size) : (paxPath(text) ?? longName);
			continue;
		}
		const name = (longName ?? plainName(header)).replace(/^(?:\.?\/)+/u, "").replace(/\/$/u, "");
		longName = undefined;
		const isFile = type === "0" || type === "\0";
		if (isFile && wanted.has(name) && size <= MAX_FILE_BYTES) {
			yield { name, isFile, data: (await reader.read(padded))?.subarray(0, size) };
		} else {
			await reader.skip(padded);
			if (type !== "g") yield { name, isFile, data: undefined };
		}
	}
}

function textOf(bytes: Buffer, start: number, length: number): string {
	const part = bytes.subarray(start, start + length);
	const end = part.indexOf(0);
	return part.subarray(0, end < 0 ? part.length : end).toString("utf8");
}

function plainName(header: Buffer): string {
	const prefix = textOf(header, 257, 5) === "ustar" ? textOf(header, 345, 155) : "";
	return prefix === "" ? textOf(header, 0, 100) : `${prefix}/${textOf(header, 0, 100)}`;
}

/** Octal digits, or GNU's binary form for large ones. */
function sizeOf(header: Buffer): number {
	if (((header[124] ?? 0) & 0x80) !== 0) return Number(header.readBigUInt64BE(128));
	const size = Number.parseInt(textOf(header, 124, 12).trim() || "0", 8);
	if (!Number.isSafeInteger(size) || size < 0) throw new Error("a size in the archive is no number");
	return size;
}

function paxPath(text: Buffer): string | undefined {
	return /^\d+ path=(?<path>.*)$/mu.exec(text.toString("utf8"))?.groups?.["path"];
}

class ByteReader {
	readonly #chunks: AsyncIterator<Buffer>;
	#rest: Buffer = Buffer.alloc(0);

	constructor(source: AsyncIterable<Buffer>) {
		this.#chunks = source[Symbol.asyncIterator]();
	}

	/** So many bytes; undefined at the end. */
	async read(length: number): Promise<Buffer | undefined> {
		const parts: Buffer[] = [];
		let size = 0;
		while (size < length) {
			if (this.#rest.length === 0 && !(await this.#next())) return undefined;
			const part = this.#rest.subarray(0, length - size);
			this.#rest = this.#rest.subarray(part.length);
			parts.push(part);
			size += part.length;
		}
		return Buffer.concat(parts);
	}

	async skip(length: number): Promise<void> {
		for (let left = length; left > 0; ) {
			if (this.#rest.length === 0 && !(await this.#next())) return;
			const taken = Math.min(left, this.#rest.length);
			this.#rest = this.#rest.subarray(taken);
			left -= taken;
		}
	}

	async #next(): Promise<boolean> {
		const next = await this.#chunks.next();
		if (next.done === true) return false;
		this.#rest = next.value;
		return true;
	}
}
