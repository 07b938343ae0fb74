/** Disks that a guest found changed. */

import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { t } from "tap";

import { Log } from "../../shim/base/log.ts";
import { fileIdentity } from "../../shim/host/filesystem.ts";
import { ImageCache } from "../../shim/storage/image-cache.ts";
import { ImageCheck } from "../../shim/storage/image-check.ts";
import { ImageStore } from "../../shim/storage/image-store.ts";
import { LayerCache } from "../../shim/storage/layer-cache.ts";
import type { Member } from "../support/archive.ts";
import { flip } from "../support/damage.ts";
import { buildImage } from "../support/image.ts";
import { eventually } from "../support/retry.ts";

const WAIT_MS = 30_000;
const TIMEOUT_MS = 60_000;
const FLIPPED = 1;
const IN_FIRST_LAYER = 2048 * 512 + 1030;

t.test("a damaged disk and damaged layers are removed, a sound one stays, and none is checked again and again", async (t) => {
	const folder = mkdtempSync(join(tmpdir(), "snp-"));
	t.teardown(() => rmSync(folder, { recursive: true, force: true }));
	const cacheDir = join(folder, "cache");
	const file = (path: string): Member => ({ kind: "file", path, data: Buffer.from(path.repeat(2000)) });
	const image = await buildImage(folder, { name: "docker.io/library/two:latest", members: [file("a")], upper: [[file("b")]] });
	const layout = join(folder, "layout");
	mkdirSync(layout);
	execFileSync("tar", ["-xf", image.file, "-C", layout]);
	const store = new ImageStore(cacheDir, TIMEOUT_MS);
	const cache = new ImageCache(cacheDir, "");
	const layers = new LayerCache(cacheDir);
	const lines: string[] = [];
	const check = new ImageCheck(cache, layers, new Log((line) => lines.push(line)));
	t.teardown(() => {
		check.close();
		store.close();
	});
	const told = (text: string): Promise<true> =>
		eventually(text, WAIT_MS, () => (lines.some((line) => line.includes(text)) ? true : undefined));
	const prepare = () => store.prepare({ kind: "layout", folder: layout }, new AbortController().signal);

	const { path, layers: parts } = await prepare();
	const sound = await fileIdentity(path);
	check.suspect(sound);
	await told("the node's file is sound");
	flip(path, IN_FIRST_LAYER, FLIPPED);
	check.suspect(sound);
	rmSync(path);
	await prepare();
	t.equal(lines.length, 1, "the same file is not checked twice in a short time");

	const [top] = parts;
	const layer = layers.path(top?.diffId ?? "");
	flip(path, IN_FIRST_LAYER, FLIPPED);
	flip(layer, 1030, FLIPPED);
	check.suspect("0:0");
	check.suspect(await fileIdentity(path));
	await told("damaged images were removed");
	t.notOk(existsSync(path));
	t.notOk(existsSync(layer));
	t.equal((await prepare()).cached, false);
	t.ok(existsSync(layer), "both are made again");
});
