/**
 * `npm run bench:disks [-- --json FILE]`: what the checks of layers and of writable disks cost in the guest. Ratios of one run: machines differ, and emulation
 * most of all.
 */

import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { randomBytes } from "node:crypto";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { upperStorage } from "../shim/agent/storages.ts";
import type { StorageRequest } from "../shim/agent/storages.ts";
import { GuestVm } from "../test/support/guest-vm.ts";
import { buildLayerDisk, layerStorages } from "../test/support/layer-disk.ts";
import { runOk } from "../test/support/process.ts";
import { hostFacts } from "./host.ts";

const RUNS = 3;
const READ_MIB = 64;
const WRITE_MIB = 48;
const DISK_BYTES = 2 ** 31;
const MKFS_MS = 60_000;
const source = fileURLToPath(new URL("guest/disk.c", import.meta.url));

const median = (values: readonly number[]): number => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;

/** Runs a measurement in containers of one kind by turns with the others, so that a change of the machine's load meets all. */
async function measure(
	vm: GuestVm,
	kinds: Readonly<Record<string, (rootfs: string) => StorageRequest[]>>,
	args: string,
): Promise<Map<string, number>> {
	const times = new Map<string, number[]>(Object.keys(kinds).map((kind) => [kind, []]));
	for (let run = 0; run < RUNS; run++) {
		for (const [kind, storages] of Object.entries(kinds)) {
			const { status, out, err } = await vm.run(storages, `exec /disk ${args}`);
			if (status !== 0) throw new Error(`${kind}: disk ${args} ended with ${status}: ${err}`);
			times.get(kind)?.push(Number(out) / 1000);
		}
	}
	return new Map([...times].map(([kind, values]) => [kind, median(values)]));
}

/** One kind of disk, beside the first one of its table. */
type Result = { readonly what: string; readonly kind: string; readonly ms: number; readonly mibPerS: number; readonly toFirst: number };

function show(what: string, mib: number, times: ReadonlyMap<string, number>): Result[] {
	const [first = Number.NaN] = times.values();
	const results = [...times].map(([kind, ms]) => ({
		...{ what, kind, ms: Math.round(ms) },
		...{ mibPerS: Math.round((mib * 1000) / ms), toFirst: Math.round((ms / first) * 100) / 100 },
	}));
	for (const { kind, ms, mibPerS, toFirst } of results)
		console.log(
			`${what.padEnd(24)} ${kind.padEnd(20)} ${String(ms).padStart(6)} ms ${String(mibPerS).padStart(6)} MiB/s ${toFirst.toFixed(2).padStart(6)}`,
		);
	return results;
}

const { json } = parseArgs({ options: { json: { type: "string" } } }).values;
const host = { ...hostFacts(), load1: loadavg()[0] ?? 0 };
const releases: (() => unknown)[] = [];
const scope = { teardown: (release: () => unknown): unknown => releases.unshift(release) };
try {
	const folder = mkdtempSync(join(tmpdir(), "snp-bench-"));
	scope.teardown(() => rmSync(folder, { recursive: true, force: true }));
	const root = join(folder, "root");
	for (const place of ["bin", "proc", "sys", "dev"]) mkdirSync(join(root, place), { recursive: true });
	const built = spawnSync("gcc", ["-O2", "-static", "-o", join(root, "disk"), source], { encoding: "utf8" });
	if (built.status !== 0) throw new Error(`gcc: ${built.stderr}`);
	await runOk(["cp", "/bin/busybox", join(root, "bin/sh")]);
	writeFileSync(join(root, "data"), randomBytes(READ_MIB * 2 ** 20));
	const layers = await buildLayerDisk(folder, [root]);
	const image = join(folder, "plain.erofs");
	await runOk(["mkfs.erofs", "-T0", image, root], { timeoutMs: MKFS_MS });
	for (const name of ["pod", "plain"]) {
		writeFileSync(join(folder, name), "");
		truncateSync(join(folder, name), DISK_BYTES);
	}
	const disks = [
		{ id: "layers", path: layers.path, readonly: true },
		{ id: "image", path: image, readonly: true },
		{ id: "pod", path: join(folder, "pod"), readonly: false },
		{ id: "plain", path: join(folder, "plain"), readonly: false },
	];
	const vm = await GuestVm.boot(scope, disks, "pod");
	const [layersAt, imageAt, plainAt] = [await vm.slot("layers"), await vm.slot("image"), await vm.slot("plain")];
	const bare = (mount_point: string): StorageRequest[] => [
		{ driver: "blk", source: imageAt, fstype: "erofs", mount_point, options: ["X-kata.overlay-lower", "X-kata.multi-layer=true"] },
	];
	const plain = (mount_point: string): StorageRequest => ({
		driver: "blk",
		source: plainAt,
		fstype: "btrfs",
		mount_point,
		options: ["rw", "X-kata.overlay-upper", "X-kata.multi-layer=true"],
		driver_options: ["create_filesystem"],
	});
	const readers = {
		"without dm-verity": bare,
		"with dm-verity": (rootfs: string): StorageRequest[] => layerStorages(layers, layersAt, rootfs),
	};
	const results = [
		...show("sequential read", READ_MIB, await measure(vm, readers, `read /data ${READ_MIB}`)),
		...show("random read, 4 KiB", READ_MIB / 16, await measure(vm, readers, `random /data ${READ_MIB}`)),
	];
	const writers = {
		memory: bare,
		"disk, plain": (rootfs: string): StorageRequest[] => [...bare(rootfs), plain(rootfs)],
		"disk, encrypted": (rootfs: string): StorageRequest[] => [...bare(rootfs), upperStorage(rootfs.split("/").at(-2) ?? "")],
	};
	results.push(...show("sequential write", WRITE_MIB, await measure(vm, writers, `write /written ${WRITE_MIB}`)));
	if (json !== undefined) writeFileSync(json, `${JSON.stringify({ date: new Date().toISOString(), host, results }, undefined, 2)}\n`);
} finally {
	for (const release of releases) await release();
}
