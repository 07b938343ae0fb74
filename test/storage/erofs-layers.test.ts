/** Layers as containerd's erofs snapshotter leaves them, on a disk of ours: with its hash trees, and with ours where it has none. */

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { t } from "tap";
import type { Test } from "tap";

import { erofsFiles, erofsSource } from "../../shim/storage/erofs-layers.ts";
import { chainIdOf } from "../../shim/storage/image-layers.ts";
import { LayerCache, readDisk } from "../../shim/storage/layer-cache.ts";
import { verifyFile } from "../../shim/storage/layer-program.ts";
import { planRootfs } from "../../shim/storage/rootfs-plan.ts";

const SALT = "ab".repeat(32);
const digest = (text: string): string => `sha256:${createHash("sha256").update(text).digest("hex")}`;

function folder(t: Test): string {
	const made = mkdtempSync(join(tmpdir(), "snp-"));
	t.teardown(() => rmSync(made, { recursive: true, force: true }));
	return made;
}

/** A layer; with a tree in the snapshotter's form where `verity` says how. */
function layer(place: string, name: string, verity: readonly string[] | undefined): string {
	const [source, file] = [join(place, `${name}.d`), join(place, `${name}.erofs`)];
	mkdirSync(source);
	writeFileSync(join(source, name), name.repeat(4000));
	execFileSync("mkfs.erofs", ["--quiet", "-d0", file, source]);
	if (verity === undefined) return file;
	const hashoffset = readFileSync(file).length;
	const told = execFileSync(
		"veritysetup",
		["format", file, file, `--hash-offset=${hashoffset}`, `--data-blocks=${hashoffset / 4096}`, ...verity],
		{ encoding: "utf8" },
	);
	const roothash = /Root hash:\s+([0-9a-f]{64})/.exec(told)?.[1] ?? "";
	writeFileSync(`${file}.dmverity`, JSON.stringify({ roothash, hashoffset }));
	return file;
}

t.test("the snapshotter's own trees are used, with and without a superblock; a layer without one gets one", async (t) => {
	const place = folder(t);
	const plain = layer(place, "plain", undefined);
	const salted = layer(place, "salted", [`--salt=${SALT}`]);
	const bare = layer(place, "bare", [`--salt=${"0".repeat(64)}`, "--no-superblock"]);
	const diffIds = ["a", "b", "c"].map(digest);
	const output = join(place, "disk");
	await new LayerCache(place).makeForeignDisk([plain, salted, bare], diffIds, output, {
		timeoutMs: 60_000,
		signal: new AbortController().signal,
	});
	const layers = await readDisk(output, chainIdOf(diffIds));
	t.strictSame(
		layers.map(({ diffId }) => diffId),
		diffIds.toReversed(),
	);
	const rootOf = (file: string): string => (JSON.parse(readFileSync(`${file}.dmverity`, "utf8")) as { roothash: string }).roothash;
	t.match(layers[1], { rootHash: rootOf(salted), salt: SALT });
	t.match(layers[2], { rootHash: rootOf(bare) });
	await verifyFile(output, { timeoutMs: 60_000 });
});

t.test("what the snapshotter mounts is known as its layers", async (t) => {
	const options = ["ro", "loop", "X-containerd.dmverity.roothash=00"];
	const mounts = ["/s/2", "/s/1"].map((source) => ({ type: "dmverity/erofs", source: `${source}/layer.erofs`, target: "", options }));
	const overlay = { type: "format/mkdir/overlay", source: "overlay", target: "", options: ["lowerdir={{ overlay 0 1 }}"] };
	t.strictSame(erofsFiles(planRootfs([...mounts, overlay], "/none").lowers), ["/s/2/layer.erofs", "/s/1/layer.erofs"]);
	t.equal(erofsFiles(planRootfs([], "/folder").lowers), undefined);
	t.strictSame(await erofsSource("/none/layer.erofs", digest("x")), { image: "/none/layer.erofs", diffId: digest("x") });
});
