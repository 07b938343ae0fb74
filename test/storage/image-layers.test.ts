/** Layers of a container, as real containerds know them, on the disk that its VM would get. Needs root, overlay and erofs. */

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { t } from "tap";
import type { Test } from "tap";

import { Log } from "../../shim/base/log.ts";
import { Scope } from "../../shim/base/scope.ts";
import { ImageLayers } from "../../shim/storage/image-layers.ts";
import { RootfsImages } from "../../shim/storage/images.ts";
import type { RootfsImage, RootfsMount } from "../../shim/storage/images.ts";
import { ContainerdApi } from "../../shim/wire/containerd-api.ts";
import { tar } from "../support/archive.ts";
import type { Member } from "../support/archive.ts";
import { PrivateContainerd } from "../support/containerd.ts";
import { Ctr, SNP_RUNTIME } from "../support/ctr.ts";
import { buildImage } from "../support/image.ts";
import type { TestImage } from "../support/image.ts";
import { everydayVersions } from "../support/paths.ts";
import { eventually } from "../support/retry.ts";

const MEBIBYTE = 1024 * 1024;
const CALL = { timeoutMs: 30_000 };
const FIRST_PARTITION = 2048 * 512;
const LAYERS = 12;

const file = (path: string, text: string): Member => ({ kind: "file", path, data: Buffer.from(text) });

/** An image of many layers, each of which changes something of the one below. */
async function build(folder: string): Promise<TestImage> {
	const upper = Array.from({ length: LAYERS - 1 }, (_, index) => [
		file(`layer${index + 1}`, "x".repeat(5000 * (index + 1))),
		file("top", String(index + 1)),
		file(`.wh.layer${index}`, ""),
	]);
	// A layer may be there twice.
	upper[5] = upper[4] ?? [];
	const name = "docker.io/library/snp-layers:latest";
	return await buildImage(folder, { name, members: [{ kind: "folder", path: "etc/" }, file("layer0", "0")], upper, compression: "gzip" });
}

interface Place {
	readonly containerd: PrivateContainerd;
	readonly ctr: Ctr;
	readonly api: ContainerdApi;
	readonly images: RootfsImages;
	readonly image: TestImage;
	readonly warnings: string[];
	readonly folder: string;
	readonly prepare: (id: string, mounts: readonly RootfsMount[], layersOnly?: boolean, address?: string) => Promise<RootfsImage>;
	/** Makes a container and gives its mounts. */
	readonly create: (id: string) => Promise<RootfsMount[]>;
}

async function place(t: Test, version: (typeof everydayVersions)[number]): Promise<Place> {
	const folder = mkdtempSync(join(tmpdir(), "snp-"));
	const containerd = await PrivateContainerd.start({ version });
	const scope = new Scope("test");
	const api = new ContainerdApi(containerd.address);
	const warnings: string[] = [];
	const log = new Log((line) => warnings.push(line));
	const images = new RootfsImages({ cacheDir: join(folder, "cache"), maxBytes: 64 * MEBIBYTE, log });
	t.teardown(async () => {
		api.close();
		images.close();
		await scope.close();
		await containerd.stop();
		rmSync(folder, { recursive: true, force: true });
	});
	const image = await build(folder);
	const ctr = new Ctr(containerd, SNP_RUNTIME, image);
	await ctr.importImage(image);
	const { namespace, address } = containerd;
	return {
		...{ containerd, ctr, api, images, image, warnings, folder },
		prepare: (id, mounts, layersOnly, asked = address) => {
			const container = { address: asked, namespace, id };
			return images.prepare({ mounts, rootfsDir: join(folder, "none"), owner: "pod", name: id, scope, container, layersOnly });
		},
		create: async (id) => {
			await ctr.callOk(["container", "create", image.name, id]);
			return await mountsOf(api, containerd, id);
		},
	};
}

/** Mounts all layers of a disk over each other, as the guest does, and hands the root to `look`. */
function stacked<T>({ path, layers = [] }: RootfsImage, look: (root: string) => T): T {
	const work = mkdtempSync(join(tmpdir(), "snp-"));
	let start = FIRST_PARTITION;
	const mounts: string[] = [];
	try {
		for (const [index, { dataBytes, treeBytes }] of layers.entries()) {
			const point = join(work, String(index));
			execFileSync("mkdir", [point]);
			execFileSync("mount", ["-t", "erofs", "-o", `loop,ro,offset=${start},sizelimit=${dataBytes}`, path, point]);
			mounts.unshift(point);
			start += dataBytes + treeBytes;
		}
		const root = join(work, "root");
		execFileSync("mkdir", [root]);
		const lowers = layers.map((_, index) => join(work, String(index))).join(":");
		execFileSync("mount", ["-t", "overlay", "-o", `ro,lowerdir=${lowers}`, "overlay", root]);
		mounts.unshift(root);
		return look(root);
	} finally {
		for (const point of mounts) execFileSync("umount", [point]);
		rmSync(work, { recursive: true });
	}
}

for (const version of everydayVersions) {
	t.test(`containerd ${version}`, async (t) => {
		const { api, containerd, ctr, create, image, prepare, warnings } = await place(t, version);
		const mounts = await create("first");
		const first = await prepare("first", mounts);
		t.equal(first.layers?.length, LAYERS, "a partition for each layer");
		t.equal(first.cached, false);
		stacked(first, (root) => {
			t.strictSame(readdirSync(root).sort(), ["etc", `layer${LAYERS - 1}`, "layer5", "top"].sort(), "the layers give the image");
			t.equal(readFileSync(join(root, "top"), "utf8"), String(LAYERS - 1));
		});
		const again = await prepare("second", await create("second"));
		t.equal(again.cached, true, "a second container takes the same disk");
		t.equal(statSync(again.path).ino, statSync(first.path).ino);
		t.strictSame(again.layers, first.layers);
		const third = await prepare("third", await create("third"), true, join(containerd.rootDir, "nobody"));
		t.strictSame(third.layers, first.layers, "and another one for which containerd can't be asked");
		truncateSync(first.path);
		const made = await prepare("fourth", await create("fourth"));
		t.strictSame([made.cached, made.layers], [false, first.layers], "a disk that was cut off, the same file, is made again");
		t.strictSame(
			warnings.filter((line) => line.includes("flattened")),
			[],
		);

		const told = (): string => warnings.findLast((line) => line.includes("flattened")) ?? "";
		const other = [{ type: "bind", source: join(containerd.rootDir, "fifo"), target: "", options: ["ro", "rbind"] }];
		t.equal((await prepare("second", other)).layers, undefined, "mounts that are not the container's are flattened");
		t.match(told(), /not the snapshot/);
		await t.rejects(prepare("second", other, true), {
			reason: "storage.layer",
			message: /in layers, and its pod takes no other: .*not the snapshot/,
		});
		await ctr.callOk(["image", "rm", "--sync", image.name]);
		rmSync(join(first.path, "../../../../..", "rootfs"), { recursive: true });
		const gone = await prepare("second", await mountsOf(api, containerd, "second"));
		t.equal(gone.layers, undefined, "an image that is gone is flattened");
		t.match(told(), /is gone/);
	});
}

t.test("the first question for the folder of blobs is nobody's own", async (t) => {
	const { containerd, image } = await place(t, "2");
	const layers = new ImageLayers();
	t.teardown(() => layers.close());
	const signal = new AbortController().signal;
	const firstBlob = async (from: AbortSignal): Promise<string | Readable | undefined> => {
		const content = await layers.contentOf(containerd.address, containerd.namespace, image.name, undefined, from);
		if (from !== signal) abort.abort();
		return await content.layers[0]?.open(signal);
	};
	const abort = new AbortController();
	t.type(await firstBlob(abort.signal), "string", "also when who asked has given up");
	t.type(await firstBlob(signal), "string");
});

t.test("an image of containerd's erofs snapshotter has the same layers", async (t) => {
	const { api, containerd, create, ctr, image, prepare } = await place(t, "2");
	const { layers } = await prepare("first", await create("first"));
	await ctr.callOk(["image", "import", "--local", "--platform", image.platform, "--snapshotter", "erofs", image.file]);
	await ctr.callOk(["container", "create", "--snapshotter", "erofs", image.name, "second"]);
	const mounts = await mountsOf(api, containerd, "second");
	const other = await prepare("second", mounts, true);
	t.strictSame(other.layers, layers);
});

t.test("images are prepared when they are pulled", async (t) => {
	const { containerd, ctr, images, folder } = await place(t, "2");
	images.watch(containerd.address);
	const disks = join(folder, "cache/rootfs");
	let number = 0;
	// The subscription begins at some time: a later image is seen in any case.
	await eventually("the disk of an image that was pulled", 60_000, async () => {
		number += 1;
		const members = [file("number", String(number))];
		await ctr.importImage(await buildImage(folder, { name: `docker.io/library/pulled-${number}:latest`, members }));
		return existsSync(disks) && readdirSync(disks).find((name) => name.startsWith("layers-"));
	});
	// One that comes again has its disk, whether its layers are still there or not.
	const layers = join(folder, "cache/layers");
	const layerFiles = (): string[] => readdirSync(layers).filter((name) => name.endsWith(".layer"));
	const pull = async (text: string): Promise<string> => {
		const members = [file("text", text)];
		await ctr.importImage(await buildImage(folder, { name: `docker.io/library/${text}:latest`, members }));
		// The chain id of a single layer is its digest.
		return join(disks, `layers-${createHash("sha256").update(tar(members)).digest("hex").slice(0, 40)}.erofs`);
	};
	const made = (disk: string) => eventually("the disk of an image that was pulled", 60_000, () => existsSync(disk) || undefined);
	await made(await pull("first"));
	for (const name of layerFiles()) rmSync(join(layers, name));
	await pull("first");
	await made(await pull("second"));
	t.equal(layerFiles().length, 1, "only the second one's layer was made");
});

async function mountsOf(api: ContainerdApi, { namespace }: PrivateContainerd, id: string): Promise<RootfsMount[]> {
	const container = await api.container(namespace, id, CALL);
	const mounts = await api.mounts(namespace, container?.snapshotter ?? "", container?.snapshotKey ?? "", CALL);
	return (mounts ?? []).map((mount) => ({ ...mount }));
}
