/** `snp-layers`, the program that makes layer files and disks of them (docs/contracts.md, "Layers"). */

import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Readable } from "node:stream";
import { fileURLToPath } from "node:url";

import * as v from "valibot";

import { withDeadlineAndEnd } from "../base/deadline.ts";
import { ShimError } from "../base/errors.ts";

const PROGRAM = "snp-layers";
const HEX_HASH = v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/));
const BYTES = v.pipe(v.number(), v.safeInteger(), v.minValue(0));

/** `sha256:` and 64 hexadecimal digits. */
export const DigestSchema = v.pipe(v.string(), v.regex(/^sha256:[0-9a-f]{64}$/));

/** The description of a layer file. */
export const LayerSchema = v.object({
	diffId: DigestSchema,
	dataBytes: BYTES,
	treeBytes: BYTES,
	rootHash: HEX_HASH,
	inodes: BYTES,
	implicit: BYTES,
});
export type LayerDescription = v.InferOutput<typeof LayerSchema>;

/** One partition of a disk of layers. */
const PartSchema = v.object({
	diffId: DigestSchema,
	dataBytes: BYTES,
	treeBytes: BYTES,
	rootHash: HEX_HASH,
	salt: v.optional(v.pipe(v.string(), v.regex(/^(?:[0-9a-f]{2}){0,256}$/))),
});
/** What a disk holds, topmost first. */
export const DiskSchema = v.object({
	format: v.literal("snp-disk-1"),
	layers: v.pipe(v.array(PartSchema), v.minLength(1), v.maxLength(128)),
});
export type DiskLayer = v.InferOutput<typeof PartSchema>;

const ProgressSchema = v.object({ progress: v.object({ done: BYTES, total: BYTES }) });
const ConvertedSchema = v.object({ layer: LayerSchema, cached: v.boolean() });
const FilesSchema = v.object({ files: v.record(v.string(), v.nullable(v.string())) });
const AssembledSchema = v.object({ disk: DiskSchema, cached: v.boolean() });

const MAX_STDERR_CHARACTERS = 4096;
/** How long a killed process may take to end. */
const END_TIMEOUT_MS = 5_000;
const STATUS_LAYER = 3;
const STATUS_FULL = 4;

/** A call's bounds. */
export interface Bounds {
	readonly timeoutMs: number;
	readonly signal?: AbortSignal | undefined;
}

/** A layer's blob. */
interface Blob extends Bounds {
	readonly diffId: string;
	/** Of the blob; not checked unless given. */
	readonly digest?: string | undefined;
	/** The blob: a file, or its bytes. */
	readonly blob: string | Readable;
}

/** A conversion. */
export interface LayerOrder extends Blob {
	readonly output: string;
	readonly staging: string;
	/** Bytes of the blob that were read, and all of them (0 when that is not known). */
	readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/**
 * Makes the file of a layer, unless it is there. Others that want it at the same moment wait, in this process and in others.
 * @throws ShimError storage.layer when the layer can't be one, storage.full, storage.image, wait.deadline, wait.canceled
 */
export async function convertLayer(order: LayerOrder): Promise<{ readonly layer: LayerDescription; readonly cached: boolean }> {
	const { diffId, blob, output, staging, onProgress } = order;
	const args = ["convert", ...blobArguments(order), "--output", output, "--staging", staging];
	if (onProgress !== undefined) args.push("--progress");
	const line = await run(
		{ args, input: typeof blob === "string" ? "" : blob, what: `the image of layer ${diffId}`, ...bounds(order) },
		(text) => {
			const found = v.safeParse(ProgressSchema, text);
			if (found.success) onProgress?.(found.output.progress.done, found.output.progress.total);
		},
	);
	return parsed(ConvertedSchema, line);
}

function blobArguments({ diffId, digest, blob }: Blob): string[] {
	return [
		...["--diff-id", diffId],
		...(digest === undefined ? [] : ["--digest", digest]),
		...(typeof blob === "string" ? ["--input", blob] : []),
	];
}

/**
 * What a layer (tar, gzip, zstd) says of files: their texts, and null where it hides those of lower layers; of others it says nothing.
 * @param order `paths` without a leading slash
 * @throws ShimError as `convertLayer`
 */
export async function readLayerFiles(order: Blob & { readonly paths: readonly string[] }): Promise<Record<string, string | null>> {
	const { diffId, blob, paths } = order;
	const args = ["files", ...blobArguments(order), "--", ...paths];
	const input = typeof blob === "string" ? "" : blob;
	return parsed(FilesSchema, await run({ args, input, what: `reading files of layer ${diffId}`, ...bounds(order) })).files;
}

/** Where a disk's layer comes from: a layer file, or an EROFS image of another program with its hash tree if it has one. */
export type DiskSource =
	| { readonly layer: string }
	| {
			readonly image: string;
			readonly diffId: string;
			readonly tree?: { readonly dataBytes: number; readonly treeOffset: number; readonly rootHash: string; readonly salt: string };
	  };

/**
 * Makes a disk of layers, the topmost first, unless it is there.
 * @throws ShimError as `convertLayer`
 */
export async function assembleDisk(
	order: Bounds & { readonly layers: readonly DiskSource[]; readonly output: string; readonly staging: string },
): Promise<void> {
	const { layers, output, staging } = order;
	const args = ["disk", "--output", output, "--staging", staging];
	const line = await run({ args, input: JSON.stringify({ layers }), what: `the disk ${output}`, ...bounds(order) });
	parsed(AssembledSchema, line);
}

/** Checks every byte of a layer file or disk. @throws ShimError storage.layer that says what differs */
export async function verifyFile(path: string, limits: Bounds): Promise<void> {
	await run({ args: ["verify", path], input: "", what: `the check of ${path}`, ...bounds(limits) });
}

const bounds = ({ timeoutMs, signal }: Bounds): Bounds => ({ timeoutMs, signal });

interface Run extends Bounds {
	readonly args: readonly string[];
	readonly input: string | Readable;
	readonly what: string;
}

/** Runs the program; gives the last line of its output. */
async function run(order: Run, onLine?: (line: unknown) => void): Promise<unknown> {
	const { args, input, what, timeoutMs, signal } = order;
	const program = findProgram();
	const wait = { what, timeoutMs, signal, graceMs: END_TIMEOUT_MS };
	return await withDeadlineAndEnd(wait, (given) => spawned(program, args, input, what, given, onLine));
}

function spawned(
	program: string,
	args: readonly string[],
	input: string | Readable,
	what: string,
	signal: AbortSignal,
	onLine?: (line: unknown) => void,
): Promise<unknown> {
	return new Promise((resolve, reject) => {
		const child = spawn(program, args, { stdio: ["pipe", "pipe", "pipe"], signal, killSignal: "SIGKILL", cwd: "/", env: {} });
		let [stderr, rest, last]: [string, string, unknown] = ["", "", undefined];
		let inputError: unknown;
		child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr = (stderr + text).slice(-MAX_STDERR_CHARACTERS)));
		child.stdout.setEncoding("utf8").on("data", (text: string) => {
			const lines = (rest + text).split("\n");
			rest = lines.pop() ?? "";
			for (const line of lines) {
				last = parseJson(line);
				onLine?.(last);
			}
		});
		// A program that has failed reads no more: its own message says why.
		child.stdin.on("error", () => undefined);
		if (typeof input === "string") child.stdin.end(input);
		else
			input
				.on("error", (error: unknown) => {
					inputError = error;
					child.kill("SIGKILL");
				})
				.pipe(child.stdin);
		child.on("error", (error) => child.pid === undefined && reject(error));
		child.on("close", (code, killed) => {
			if (code === 0) resolve(last);
			else if (inputError !== undefined)
				reject(new ShimError("storage.image", `reading the blob of ${what} failed`, { cause: inputError }));
			else reject(failure(what, stderr.trim() || `it ended with ${killed ?? code}`, code));
		});
	});
}

function failure(what: string, text: string, code: number | null): ShimError {
	if (code === STATUS_LAYER) return new ShimError("storage.layer", `${what}: ${text}`);
	return new ShimError(code === STATUS_FULL ? "storage.full" : "storage.image", `${what}: ${text}`);
}

/** Undefined for what is no JSON: a schema refuses that. */
export function parseJson(line: string): unknown {
	try {
		return JSON.parse(line) as unknown;
	} catch {
		return undefined;
	}
}

function parsed<T extends v.GenericSchema>(schema: T, line: unknown): v.InferOutput<T> {
	const found = v.safeParse(schema, line);
	if (!found.success) throw new ShimError("internal", `${PROGRAM} gave an answer of another form: ${found.issues[0].message}`);
	return found.output;
}

/** Beside the program in `dist/bin`; for a program that runs from the sources, where the build puts it. */
function findProgram(): string {
	const here = dirname(fileURLToPath(import.meta.url));
	const places = [join(here, PROGRAM), join(here, "..", "..", "dist", "bin", PROGRAM)];
	const place = places.find((path) => existsSync(path));
	if (place === undefined) {
		throw new ShimError("storage.image", `${PROGRAM} is neither at ${places.join(" nor at ")}`, {
			remedy: `install ${PROGRAM} beside snpd`,
		});
	}
	return place;
}
