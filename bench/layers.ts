/**
 * `npm run bench:layers [-- --json FILE]`: how fast layers are converted, beside unpacking them with tar; what the first pod of an image waits for, in layers
 * and flattened; how long a cached image of twelve layers takes until it can be attached; what ten pods of one image take of memory beside one.
 * Conversions begin with the archive in the page cache and end with everything on the disk.
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";

import { Scope } from "../shim/base/scope.ts";
import { RootfsImages } from "../shim/storage/images.ts";
import type { RootfsImage } from "../shim/storage/images.ts";
import { ContainerdApi } from "../shim/wire/containerd-api.ts";
import type { Member } from "../test/support/archive.ts";
import { PrivateContainerd } from "../test/support/containerd.ts";
import { Ctr, SNP_RUNTIME } from "../test/support/ctr.ts";
import { buildImage } from "../test/support/image.ts";
import { distBinDir, requireBuilt } from "../test/support/paths.ts";
import { hostFacts } from "./host.ts";
import { measureMemory } from "./layer-memory.ts";
import { summarize } from "./statistics.ts";

const ROUNDS = 3;
const FILES = 2000;
const LAYERS = 12;
const ATTACHES = 50;
const CALL = { timeoutMs: 30_000 };
/** What pods wait for of an image that is there already. */
const ATTACH_TARGET_MS = 5;

const median = (values: readonly number[]): number => summarize(values).median;
const hundredths = (value: number): number => Math.round(value * 100) / 100;

function timed(work: () => void): number {
	const started = performance.now();
	work();
	return performance.now() - started;
}

/** Files as an image has them: many small ones, a few large ones; half of their bytes can be compressed. */
function members(): Member[] {
	let state = 1;
	const next = (): number => (state = (state * 48_271) % 2_147_483_647);
	return Array.from({ length: FILES }, (_, index) => {
		const size = index % 100 === 0 ? 1_500_000 : next() % 20_000;
		const data = Buffer.alloc(size);
		for (let at = 0; at + 4 <= size; at += 8) data.writeUInt32LE(next(), at);
		return { kind: "file", path: `d${index % 200}/f${index}`, data };
	});
}

const folders = Array.from({ length: 200 }, (_, index): Member => ({ kind: "folder", path: `d${index}/` }));

function fill(folder: string): void {
	for (const member of members()) {
		if (member.kind !== "file") continue;
		mkdirSync(join(folder, member.path, ".."), { recursive: true });
		writeFileSync(join(folder, member.path), member.data);
	}
}

function benchConversion(work: string) {
	const [source, blob] = [join(work, "source"), join(work, "blob.tar")];
	fill(source);
	execFileSync("tar", ["-cf", blob, "-C", source, "."]);
	execFileSync("gzip", ["-k", "-6", blob]);
	execFileSync("zstd", ["-q", "-k", blob]);
	const archive = readFileSync(blob);
	const diffId = `sha256:${createHash("sha256").update(archive).digest("hex")}`;
	return ["", ".gz", ".zst"].map((suffix) => {
		const [unpacked, tars, ours]: [number[], number[], number[]] = [[], [], []];
		for (let round = 0; round < ROUNDS; round++) {
			const place = mkdtempSync(join(work, "round-"));
			mkdirSync(join(place, "unpacked"));
			const unpack = timed(() => execFileSync("tar", ["-xf", blob + suffix, "-C", join(place, "unpacked")]));
			unpacked.push(unpack);
			tars.push(unpack + timed(() => execFileSync("sync", ["-f", place])));
			const args = ["convert", "--diff-id", diffId, "--input", blob + suffix, "--output", join(place, "layer"), "--staging", place];
			ours.push(timed(() => execFileSync(join(distBinDir, "snp-layers"), args, { stdio: "ignore" })));
			rmSync(place, { recursive: true });
		}
		const [alone, tar, own] = [median(unpacked), median(tars), median(ours)];
		const megabytesPerS = Math.round(archive.length / 1e6 / (own / 1000));
		const result = {
			archive: `tar${suffix}`,
			convertMs: own,
			megabytesPerS,
			toTarAndSync: hundredths(own / tar),
			toTar: hundredths(own / alone),
		};
		console.log(
			`tar${suffix}: tar x and sync ${tar.toFixed(0)} ms, converted in ${own.toFixed(0)} ms: ${megabytesPerS} MB/s, ${result.toTarAndSync} times that (${result.toTar} times tar x alone)`,
		);
		return result;
	});
}

/** An image of `LAYERS` layers, the lowest of them large. */
async function benchImages(work: string) {
	const containerd = await PrivateContainerd.start({ version: "2" });
	const api = new ContainerdApi(containerd.address);
	const opened: RootfsImages[] = [];
	const newCache = (name: string): RootfsImages => {
		const images = new RootfsImages({ cacheDir: join(work, name), maxBytes: 1e10 });
		opened.push(images);
		return images;
	};
	try {
		const upper = Array.from({ length: LAYERS - 1 }, (_, index): Member[] => [
			{ kind: "file", path: `f${index}`, data: Buffer.alloc(1_000_000, index + 1) },
		]);
		const recipe = { name: "docker.io/library/bench:latest", members: [...folders, ...members()], upper, compression: "gzip" } as const;
		const image = await buildImage(work, recipe);
		const ctr = new Ctr(containerd, SNP_RUNTIME, image);
		await ctr.importImage(image);
		await ctr.callOk(["container", "create", image.name, "one"]);
		const { namespace, address } = containerd;
		const found = await api.container(namespace, "one", CALL);
		const mounts = (await api.mounts(namespace, found?.snapshotter ?? "", found?.snapshotKey ?? "", CALL)) ?? [];
		const prepare = async (images: RootfsImages, inLayers: boolean): Promise<{ readonly ms: number; readonly image: RootfsImage }> => {
			const scope = new Scope("bench");
			const container = inLayers ? { address, namespace, id: "one" } : undefined;
			const started = performance.now();
			const image = await images.prepare({ mounts, rootfsDir: "/none", owner: "pod", name: "one", scope, container });
			const ms = performance.now() - started;
			await scope.close();
			if (inLayers && image.layers?.length !== LAYERS) throw new Error("the image was flattened");
			return { ms, image };
		};
		const [layered, flattened]: [number[], number[]] = [[], []];
		for (let round = 0; round < ROUNDS; round++) {
			layered.push((await prepare(newCache(`layered${round}`), true)).ms);
			flattened.push((await prepare(newCache(`flattened${round}`), false)).ms);
		}
		const attaches: number[] = [];
		for (let round = 0; round < ATTACHES; round++) attaches.push((await prepare(opened[0] ?? newCache("none"), true)).ms);
		const results = {
			layers: LAYERS,
			firstPodMs: { layered: median(layered), flattened: median(flattened) },
			layeredToFlattened: hundredths(median(layered) / median(flattened)),
			cachedAttachMs: summarize(attaches),
			cachedAttachTargetMs: ATTACH_TARGET_MS,
		};
		console.log(
			`an image of ${LAYERS} layers: made in ${median(layered).toFixed(0)} ms, flattened in ${median(flattened).toFixed(0)} ms (${results.layeredToFlattened} times that); ` +
				`cached, ready to attach after ${median(attaches).toFixed(1)} ms (median of ${ATTACHES}; target ${ATTACH_TARGET_MS})`,
		);
		return results;
	} finally {
		api.close();
		for (const images of opened) images.close();
		await containerd.stop();
	}
}

requireBuilt();
const { json } = parseArgs({ options: { json: { type: "string" } } }).values;
const work = mkdtempSync(join(tmpdir(), "snp-bench-"));
try {
	const host = { ...hostFacts(), load1: loadavg()[0] ?? 0 };
	const image = await benchImages(work);
	const conversion = benchConversion(work);
	const memory = await measureMemory();
	const total = ({ vms, image }: { readonly vms: number; readonly image: number }): string =>
		`${(vms + image).toFixed(0)} MiB (VMs ${vms}, image ${image})`;
	console.log(`memory of one pod: ${total(memory.one)}; of ten pods of its image: ${total(memory.ten)}: ${memory.tenToOne} times that`);
	if (json !== undefined)
		writeFileSync(json, `${JSON.stringify({ date: new Date().toISOString(), host, image, conversion, memory }, undefined, 2)}\n`);
} finally {
	rmSync(work, { recursive: true, force: true });
}
