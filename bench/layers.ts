/**
 * `npm run bench:layers`: how fast layers are converted, beside unpacking them with tar, and how long a cached image of twelve layers takes until it can be
 * attached. Both sides begin with the archive in the page cache and end with everything on the disk.
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { Scope } from "../shim/base/scope.ts";
import { RootfsImages } from "../shim/storage/images.ts";
import { ContainerdApi } from "../shim/wire/containerd-api.ts";
import { PrivateContainerd } from "../test/support/containerd.ts";
import { Ctr, SNP_RUNTIME } from "../test/support/ctr.ts";
import { buildImage } from "../test/support/image.ts";
import { distBinDir } from "../test/support/paths.ts";

const ROUNDS = 3;
const FILES = 2000;
const LAYERS = 12;
const ATTACHES = 50;
const CALL = { timeoutMs: 30_000 };

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;

function timed(work: () => void): number {
	const started = performance.now();
	work();
	return performance.now() - started;
}

/** Files as an image has them: many small ones, a few large ones; half of their bytes can be compressed. */
function fill(folder: string): void {
	let state = 1;
	const next = (): number => (state = (state * 48_271) % 2_147_483_647);
	for (let index = 0; index < FILES; index++) {
		const size = index % 100 === 0 ? 1_500_000 : next() % 20_000;
		const data = Buffer.alloc(size);
		for (let at = 0; at + 4 <= size; at += 8) data.writeUInt32LE(next(), at);
		const place = join(folder, `d${index % 200}`);
		mkdirSync(place, { recursive: true });
		writeFileSync(join(place, `f${index}`), data);
	}
}

function benchConversion(work: string): void {
	const [source, blob] = [join(work, "source"), join(work, "blob.tar")];
	fill(source);
	execFileSync("tar", ["-cf", blob, "-C", source, "."]);
	execFileSync("gzip", ["-k", "-6", blob]);
	execFileSync("zstd", ["-q", "-k", blob]);
	const archive = readFileSync(blob);
	const diffId = `sha256:${createHash("sha256").update(archive).digest("hex")}`;
	for (const suffix of ["", ".gz", ".zst"]) {
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
		const rate = (archive.length / 1e6 / (own / 1000)).toFixed(0);
		const ratios = `${(own / tar).toFixed(2)} times that (${(own / alone).toFixed(2)} times tar x alone)`;
		console.log(`tar${suffix}: tar x and sync ${tar.toFixed(0)} ms, converted in ${own.toFixed(0)} ms: ${rate} MB/s, ${ratios}`);
	}
}

async function benchAttach(work: string): Promise<void> {
	const containerd = await PrivateContainerd.start({ version: "2" });
	const api = new ContainerdApi(containerd.address);
	const images = new RootfsImages({ cacheDir: join(work, "cache"), maxBytes: 1e9 });
	try {
		const layer = (index: number) => [{ kind: "file", path: `f${index}`, data: Buffer.alloc(1_000_000, index + 1) } as const];
		const upper = Array.from({ length: LAYERS - 1 }, (_, index) => layer(index + 1));
		const image = await buildImage(work, { name: "docker.io/library/bench:latest", members: layer(0), upper, compression: "gzip" });
		const ctr = new Ctr(containerd, SNP_RUNTIME, image);
		await ctr.importImage(image);
		await ctr.callOk(["container", "create", image.name, "one"]);
		const { namespace, address } = containerd;
		const container = await api.container(namespace, "one", CALL);
		const mounts = (await api.mounts(namespace, container?.snapshotter ?? "", container?.snapshotKey ?? "", CALL)) ?? [];
		const times: number[] = [];
		for (let round = 0; round <= ATTACHES; round++) {
			const scope = new Scope("bench");
			const started = performance.now();
			const wanted = { mounts, rootfsDir: "/none", owner: "pod", name: "one", scope, container: { address, namespace, id: "one" } };
			const { layers } = await images.prepare(wanted);
			times.push(performance.now() - started);
			if (layers?.length !== LAYERS) throw new Error("the image was flattened");
			await scope.close();
		}
		const [first, ...cached] = times;
		console.log(
			`an image of ${LAYERS} layers: made in ${first?.toFixed(0)} ms; cached, ready to attach after ${median(cached).toFixed(1)} ms (median of ${ATTACHES})`,
		);
	} finally {
		api.close();
		await images.close();
		await containerd.stop();
	}
}

const work = mkdtempSync(join(tmpdir(), "snp-bench-"));
try {
	await benchAttach(work);
	benchConversion(work);
} finally {
	rmSync(work, { recursive: true, force: true });
}
