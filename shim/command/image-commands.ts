/** `snpctl image`: the cache of layers and disks, worked on directly, whether snpd runs or not. */

import { statSync } from "node:fs";
import { basename, resolve } from "node:path";
import { env, stdout } from "node:process";
import { parseArgs } from "node:util";

import { explain, messageOf, ShimError } from "../base/errors.ts";
import { CONFIG_FILE_VARIABLE, DEFAULT_CONFIG_FILE } from "../base/names.ts";
import { loadConfig } from "../config/load.ts";
import { ImageStore } from "../storage/image-store.ts";
import type { ImageSource, StoredFile } from "../storage/image-store.ts";
import type { LayerProgress } from "../storage/layer-cache.ts";
import { ProgressBar, shownBytes } from "./progress-bar.ts";
import { table } from "./table.ts";

/** What the commands take besides their words. */
interface ImageOptions {
	readonly json: boolean;
	readonly address: string;
	readonly namespace: string;
	readonly all: boolean;
	readonly "cache-dir"?: string | undefined;
}

const DEFAULT_ADDRESS = "/run/containerd/containerd.sock";
const DEFAULT_NAMESPACE = "k8s.io";
const USAGE = `usage: snpctl image [options] command
  prepare IMAGE...   converts an image's layers ahead of its first pod (IMAGE: a name in containerd, or the folder of an OCI layout)
  list               what the cache holds
  inspect IMAGE      an image's layers, topmost first: digests, sizes, root hashes (converts what is not in the cache)
  verify [IMAGE]     checks every byte of an image, or of the whole cache
  gc                 removes what no pod uses, down to storage.cache_max_mib (--all: all of it)
options:
  --address SOCKET   containerd's socket (default: ${DEFAULT_ADDRESS})
  --namespace NAME   containerd's namespace (default: ${DEFAULT_NAMESPACE}, that of Kubernetes)
  --cache-dir DIR    the cache's folder (default: the configuration's storage.cache_dir)
  --json             machine-readable output
  --help`;

const MIB = 1024 * 1024;
const SHORT_DIGEST = 19;

/**
 * Runs `snpctl image` with the words after it.
 * @returns the exit status
 * @throws ShimError
 */
export async function image(args: readonly string[]): Promise<number> {
	const { values, positionals } = readArguments(args);
	if (values.help === true) print(USAGE);
	else await run(positionals, { ...values, json: values.json ?? false, all: values.all ?? false });
	return 0;
}

function readArguments(args: readonly string[]) {
	try {
		return parseArgs({
			args: [...args],
			allowPositionals: true,
			options: {
				address: { type: "string", default: DEFAULT_ADDRESS },
				namespace: { type: "string", default: DEFAULT_NAMESPACE },
				"cache-dir": { type: "string" },
				all: { type: "boolean" },
				json: { type: "boolean" },
				help: { type: "boolean", short: "h" },
			},
		});
	} catch (error) {
		throw new ShimError("call.invalid", messageOf(error), { remedy: USAGE });
	}
}

async function run(words: readonly string[], options: ImageOptions): Promise<void> {
	const file = env[CONFIG_FILE_VARIABLE];
	const config = await loadConfig(file ?? DEFAULT_CONFIG_FILE, { required: file !== undefined });
	const store = new ImageStore(resolve(options["cache-dir"] ?? config.storage.cache_dir), config.timeouts.image_build_ms);
	const abort = new AbortController();
	const stop = (): void => abort.abort(new ShimError("wait.canceled", "stopped"));
	process.once("SIGINT", stop);
	try {
		const [command, ...names] = words;
		const maxBytes = config.storage.cache_max_mib * MIB;
		const context = { store, options, signal: abort.signal, maxBytes };
		if (command === "prepare" && names.length > 0) return await prepare(context, names);
		if (command === "list" && names.length === 0) return await list(context);
		if (command === "inspect" && names.length === 1) return await inspect(context, names[0] ?? "");
		if (command === "verify" && names.length <= 1) return await verify(context, names[0]);
		if (command === "gc" && names.length === 0) return await collect(context, options.all ? 0 : maxBytes);
		throw new ShimError("call.invalid", `unknown command: image ${words.join(" ")}`, { remedy: USAGE });
	} finally {
		process.off("SIGINT", stop);
		store.close();
	}
}

interface Context {
	readonly store: ImageStore;
	readonly options: ImageOptions;
	readonly signal: AbortSignal;
	/** The bound of the cache. */
	readonly maxBytes: number;
}

/** A folder of this machine is an OCI layout, anything else a name. */
function sourceOf(name: string, { address, namespace }: ImageOptions): ImageSource {
	const isFolder = statSync(name, { throwIfNoEntry: false })?.isDirectory() ?? false;
	return isFolder ? { kind: "layout", folder: resolve(name) } : { kind: "containerd", address, namespace, name };
}

async function prepare({ store, options, signal, maxBytes }: Context, names: readonly string[]): Promise<void> {
	const prepared = [];
	for (const name of names) {
		const image = await withBar(name, (onProgress) => store.prepare(sourceOf(name, options), signal, onProgress));
		prepared.push({ image: name, ...image });
		await store.collect(maxBytes, image.path);
	}
	if (options.json) return print(JSON.stringify(prepared));
	for (const { image, chainId, layers, cached } of prepared)
		print(`${image}: ${layers.length} layers, ${chainId}${cached ? " (was there)" : ""}`);
}

/** Shows how far the layers of an image are while `work` goes on. */
async function withBar<T>(name: string, work: (onProgress: LayerProgress) => Promise<T>): Promise<T> {
	const bar = new ProgressBar(name);
	const shares = new Map<string, number>();
	try {
		return await work(({ diffId, done, total }) => {
			shares.set(diffId, total === 0 ? 0 : done / total);
			bar.show([...shares.values()]);
		});
	} finally {
		bar.clear();
	}
}

async function list({ store, options }: Context): Promise<void> {
	const files = (await store.list()).sort((a, b) => b.usedMs - a.usedMs);
	if (options.json) return print(JSON.stringify(files));
	const rows = files.map((file) => [
		file.kind,
		file.chainId?.slice(0, SHORT_DIGEST) ?? basename(file.path).slice(0, SHORT_DIGEST),
		file.layers === undefined ? "-" : String(file.layers.length),
		shownBytes(file.bytes),
		file.inUse ? "yes" : "no",
		new Date(file.usedMs).toISOString(),
	]);
	print(table([["KIND", "ID", "LAYERS", "ON DISK", "IN USE", "LAST USED"], ...rows]));
	if (files.some(({ kind }) => kind === "flattened"))
		print("flattened: made of mounted folders, not of layers; such an image has no hash that follows from its digest");
}

async function inspect({ store, options, signal }: Context, name: string): Promise<void> {
	const { chainId, path, layers } = await withBar(name, (onProgress) => store.inspect(sourceOf(name, options), signal, onProgress));
	if (options.json) return print(JSON.stringify({ image: name, chainId, path, layers }));
	print(`chain id  ${chainId}\ndisk      ${path ?? "not prepared"}`);
	const rows = layers.map(({ diffId, dataBytes, treeBytes, rootHash }, index) => [
		String(index + 1),
		diffId,
		shownBytes(dataBytes),
		shownBytes(treeBytes),
		rootHash,
	]);
	print(table([["LAYER", "DIFF ID", "IMAGE", "TREE", "ROOT HASH"], ...rows]));
}

async function verify({ store, options, signal }: Context, name: string | undefined): Promise<void> {
	const wanted = name === undefined ? undefined : (await store.find(sourceOf(name, options), signal)).path;
	const files = (await store.list()).filter((file) => file.kind !== "flattened" && (wanted === undefined || file.path === wanted));
	const bar = new ProgressBar("verify");
	const damaged: { readonly path: string; readonly reason: string }[] = [];
	const shares = files.map(() => 0);
	for (const [index, file] of files.entries()) {
		await check(store, file, signal, damaged);
		shares[index] = 1;
		bar.show(shares);
	}
	bar.clear();
	if (options.json) print(JSON.stringify({ verified: files.length - damaged.length, damaged }));
	else for (const { path, reason } of damaged) print(`${path}: ${reason}`);
	if (damaged.length > 0) {
		const remedy = "remove the files: they are made again";
		throw new ShimError("storage.layer", `${damaged.length} of ${files.length} files are damaged`, { remedy });
	}
	if (!options.json) print(`${files.length} files are sound`);
}

async function check(store: ImageStore, file: StoredFile, signal: AbortSignal, damaged: { path: string; reason: string }[]): Promise<void> {
	try {
		await store.verify(file, signal);
	} catch (error) {
		if (!(error instanceof ShimError && error.reason === "storage.layer")) throw error;
		damaged.push({ path: file.path, reason: explain(error) });
	}
}

async function collect({ store, options }: Context, maxBytes: number): Promise<void> {
	const removed = await store.collect(maxBytes);
	const bytes = removed.reduce((sum, file) => sum + file.bytes, 0);
	print(
		options.json
			? JSON.stringify({ removed: removed.map(({ path }) => path), bytes })
			: `removed ${removed.length} files, ${shownBytes(bytes)}`,
	);
}

function print(text: string): void {
	stdout.write(`${text}\n`);
}
