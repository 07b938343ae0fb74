/** Root filesystems as images: real layers, real conversions, read back by the kernel. Needs root, overlay and erofs. */

import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
	chmodSync,
	chownSync,
	existsSync,
	linkSync,
	mkdirSync,
	mkdtempSync,
	readdirSync,
	readFileSync,
	rmSync,
	statSync,
	symlinkSync,
	utimesSync,
	writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { t } from "tap";
import type { Test } from "tap";

import { ShimError } from "../../shim/base/errors.ts";
import { Scope } from "../../shim/base/scope.ts";
import { RootfsImages } from "../../shim/storage/images.ts";
import type { PrepareRequest, RootfsImage, RootfsMount } from "../../shim/storage/images.ts";

interface Place {
	readonly folder: string;
	readonly images: RootfsImages;
	readonly scope: Scope;
	readonly prepare: (mounts: readonly RootfsMount[], name: string, more?: Partial<PrepareRequest>) => Promise<RootfsImage>;
}

const MEBIBYTE = 1024 * 1024;

function place(t: Test, options: { readonly maxBytes?: number; readonly cacheDir?: string } = {}): Place {
	const folder = mkdtempSync(join(tmpdir(), "snp-"));
	const images = new RootfsImages({ cacheDir: join(folder, "cache"), maxBytes: 64 * MEBIBYTE, ...options });
	const scope = new Scope("test");
	t.teardown(async () => {
		await scope.close();
		rmSync(folder, { recursive: true, force: true });
	});
	return {
		folder,
		images,
		scope,
		prepare: (mounts, name, more) => images.prepare({ mounts, rootfsDir: join(folder, "none"), owner: "pod", name, scope, ...more }),
	};
}

/** A folder with these files. */
function layer(folder: string, name: string, files: Readonly<Record<string, string>>): string {
	const path = join(folder, name);
	mkdirSync(path);
	for (const [file, text] of Object.entries(files)) writeFileSync(join(path, file), text);
	return path;
}

const overlay = (lowers: readonly string[], upper?: string): RootfsMount[] => [
	{
		type: "overlay",
		source: "overlay",
		target: "",
		options: [`lowerdir=${lowers.join(":")}`, ...(upper === undefined ? [] : [`upperdir=${upper}`, "workdir=/w"])],
	},
];
const view = (source: string): RootfsMount[] => [{ type: "bind", source, target: "", options: ["ro", "rbind"] }];

/** Mounts an image and hands it to `look`. */
function mounted<T>(image: RootfsImage, look: (root: string) => T): T {
	const root = mkdtempSync(join(tmpdir(), "snp-"));
	execFileSync("mount", ["-t", "erofs", "-o", "loop,ro", image.path, root]);
	try {
		return look(root);
	} finally {
		execFileSync("umount", [root]);
		rmSync(root, { recursive: true });
	}
}

/** The folder of the pods of the one instance that uses the cache. */
function podsOf(folder: string): string {
	const all = join(folder, "cache/rootfs/pods");
	return join(all, ...readdirSync(all));
}

const contents = (image: RootfsImage): Record<string, string> =>
	mounted(image, (root) => Object.fromEntries(readdirSync(root).map((name) => [name, readFileSync(join(root, name), "utf8")])));

async function reasonOf(promise: Promise<unknown>): Promise<ShimError> {
	try {
		await promise;
	} catch (error) {
		if (error instanceof ShimError) return error;
		throw error;
	}
	throw new Error("it did not fail");
}

t.test("a tree keeps what a root filesystem needs: modes, owners, times, links, devices, capabilities", async (t) => {
	const { folder, prepare } = place(t);
	const root = layer(folder, "l", { file: "text" });
	chownSync(join(root, "file"), 1234, 5678);
	chmodSync(join(root, "file"), 0o4751);
	utimesSync(join(root, "file"), 1_000_000_000, 1_000_000_000);
	linkSync(join(root, "file"), join(root, "hard"));
	symlinkSync("file", join(root, "soft"));
	execFileSync("mknod", [join(root, "dev"), "c", "1", "3"]);
	execFileSync("python3", [
		"-c",
		"import os,sys; os.setxattr(sys.argv[1], 'security.capability', bytes.fromhex('0100000200040000000000000000000000000000'))",
		join(root, "hard"),
	]);
	mounted(await prepare(view(root), "c"), (found) => {
		const file = statSync(join(found, "file"));
		t.match(file, { mode: 0o104751, uid: 1234, gid: 5678, mtimeMs: 1e12, nlink: 2, ino: statSync(join(found, "hard")).ino });
		t.equal(statSync(join(found, "soft")).ino, file.ino);
		t.equal(statSync(join(found, "dev")).rdev, (1 << 8) + 3);
		t.match(
			execFileSync("python3", ["-c", "import os,sys; print(os.listxattr(sys.argv[1]))", join(found, "file")], { encoding: "utf8" }),
			/security\.capability/,
		);
	});
});

t.test("layers are merged: the top wins, whiteouts hide, and the writable layer stays untouched", async (t) => {
	const { folder, prepare } = place(t);
	const bottom = layer(folder, "bottom:,odd", { both: "bottom", gone: "x", low: "1" });
	const top = layer(folder, "top", { both: "top" });
	execFileSync("mknod", [join(top, "gone"), "c", "0", "0"]);
	const upper = layer(folder, "upper", {});
	const lowers = [top, bottom.replace(":", "\\:")];
	const before = execFileSync("stat", ["-c", "%Z %i", upper], { encoding: "utf8" });
	t.same(contents(await prepare(overlay(lowers, upper), "c1")), { both: "top", low: "1" });
	t.equal(execFileSync("stat", ["-c", "%Z %i", upper], { encoding: "utf8" }), before);
	t.same(readdirSync(upper), []);
	writeFileSync(join(upper, "written"), "w");
	const own = await prepare(overlay(lowers, upper), "c2");
	t.same(contents(own), { both: "top", low: "1", written: "w" });
	t.equal(own.cached, false);
	t.equal(statSync(own.path).nlink, 1, "a written root filesystem is not shared");
});

t.test("an image is made once, and known again by its layers", async (t) => {
	const { folder, images, prepare } = place(t);
	const low = layer(folder, "l", { a: "1" });
	const all = await Promise.all(Array.from({ length: 5 }, (_, i) => prepare(overlay([low], layer(folder, `u${i}`, {})), `c${i}`)));
	t.equal(new Set(all.map(({ path }) => statSync(path).ino)).size, 1);
	t.equal(readdirSync(join(folder, "cache/rootfs")).filter((name) => name.endsWith(".erofs")).length, 1);
	t.equal((await prepare(view(low), "again")).cached, true, "a view of the same layer");
	const another = new RootfsImages({ cacheDir: join(folder, "cache"), maxBytes: MEBIBYTE });
	const scope = new Scope("another");
	t.equal((await another.prepare({ mounts: view(low), rootfsDir: "", owner: "pod2", name: "c", scope })).cached, true, "after a restart");
	await scope.close();
	t.same(readdirSync(podsOf(folder)), ["pod"], "the scope takes the pod's folder with it");
	rmSync(low, { recursive: true });
	layer(folder, "l", { a: "2" });
	const remade = await prepare(view(low), "c9");
	t.equal(remade.cached, false, "a layer made again at the same path is another one");
	t.same(contents(remade), { a: "2" });
	await images.release("pod", "c9");
	t.notOk(existsSync(remade.path));
});

t.test("two processes that want one image at the same time", async (t) => {
	const { folder, prepare } = place(t);
	const low = layer(folder, "l", { a: "1" });
	const twin = new RootfsImages({ cacheDir: join(folder, "cache"), maxBytes: MEBIBYTE });
	const scope = new Scope("twin");
	t.teardown(() => scope.close());
	const [one, two] = await Promise.all([
		prepare(view(low), "c"),
		twin.prepare({ mounts: view(low), rootfsDir: "", owner: "twin", name: "c", scope }),
	]);
	t.equal(statSync(one.path).size, statSync(two.path).size);
	t.same(readdirSync(join(folder, "cache/rootfs/building")), []);
});

t.test("an EROFS layer is the disk itself; several are merged", async (t) => {
	const { folder, prepare } = place(t);
	const [one, two] = (["one", "two"] as const).map((name): RootfsMount => {
		const file = join(folder, `${name}.erofs`);
		execFileSync("mkfs.erofs", ["--quiet", file, layer(folder, name, { [name]: name, both: name })]);
		return { type: "erofs", source: file, target: "", options: ["ro", "loop"] };
	});
	if (one === undefined || two === undefined) throw new Error("no layers");
	const alone = await prepare([one], "c1");
	t.match(alone, { path: one.source, cached: true });
	const upper = layer(folder, "upper", {});
	const format = (lowerdir: string): RootfsMount => ({
		type: "format/mkdir/overlay",
		source: "overlay",
		target: "",
		options: [`upperdir=${upper}`, "workdir=/w", `lowerdir=${lowerdir}`],
	});
	t.equal((await prepare([one, format("{{ mount 0 }}")], "c2")).path, one.source, "an overlay of one layer");
	const merged = await prepare([two, one, format("{{ overlay 0 1 }}")], "c3");
	t.same(contents(merged), { one: "one", two: "two", both: "two" });
	t.equal((await prepare([two, one, format("{{ overlay 0 1 }}")], "c4")).cached, true);
	t.notMatch(execFileSync("losetup", ["-a"], { encoding: "utf8" }), folder, "no loop device is left");
});

t.test("a root filesystem that is not there is named", async (t) => {
	const { prepare } = place(t);
	const error = await reasonOf(prepare([], "c", { rootfsDir: "/nowhere/rootfs" }));
	t.equal(error.reason, "storage.mount");
	t.match(error.message, /\/nowhere\/rootfs/);
});

t.test("no mounts: the bundle's folder, never shared", async (t) => {
	const { folder, prepare } = place(t);
	const rootfsDir = layer(folder, "rootfs", { a: "1" });
	const image = await prepare([], "c", { rootfsDir });
	t.same(contents(image), { a: "1" });
	t.equal(statSync(image.path).nlink, 1);
});

t.test("the cache is bounded, and what a pod uses stays", async (t) => {
	const { folder, images, scope, prepare } = place(t, { maxBytes: 300_000 });
	const big = "x".repeat(100_000);
	const paths = new Map<string, string>();
	for (const name of ["a", "b", "c", "d"]) {
		const { path } = await prepare(view(layer(folder, name, { big: big + name })), name);
		paths.set(name, path);
		const used = name.charCodeAt(0);
		utimesSync(path, used, used);
	}
	const shared = (): number => readdirSync(join(folder, "cache/rootfs")).filter((name) => name.endsWith(".erofs")).length;
	t.equal(shared(), 4, "all are in use");
	await images.release("pod", "b");
	await images.release("pod", "c");
	await images.sweep(new Set(["pod"]));
	t.equal(shared(), 2, "the unused ones are gone");
	t.ok([...paths.values()].filter((path) => existsSync(path)).length === 2);
	await scope.close();
	await images.sweep(new Set());
	t.equal(shared(), 2, "two fit");
});

t.test("sweep removes what dead pods and dead builders left, and nothing of the living", async (t) => {
	const { folder, images, prepare } = place(t);
	const living = await prepare(view(layer(folder, "l", { a: "1" })), "c");
	const pods = podsOf(folder);
	const other = new RootfsImages({ cacheDir: join(folder, "cache"), maxBytes: MEBIBYTE, instance: "/other" });
	await other.sweep(new Set());
	t.ok(existsSync(living.path), "another instance's pods are none of its business");
	const building = join(folder, "cache/rootfs/building");
	mkdirSync(join(pods, "dead"));
	linkSync(living.path, join(pods, "dead/c.erofs"));
	writeFileSync(join(building, "1-1-1.erofs"), "half");
	mkdirSync(join(building, "1-1-1.erofs.d"));
	const own = `${process.pid}-${readFileSync("/proc/self/stat", "utf8").split(") ")[1]?.split(" ")[19]}-7.erofs`;
	writeFileSync(join(building, own), "being made");
	await images.sweep(new Set(["pod"]));
	t.same(readdirSync(pods), ["pod"]);
	t.same(readdirSync(building), [own]);
	t.ok(existsSync(living.path));
});

t.test("failures are named and leave nothing", async (t) => {
	const { folder, prepare } = place(t);
	const left = (): string[] =>
		readdirSync(join(folder, "cache/rootfs"), { recursive: true })
			.map(String)
			.filter((name) => /erofs|lock/.test(name));
	t.match(await reasonOf(prepare(view(join(folder, "missing")), "c1")), { reason: "storage.mount", message: /missing: ENOENT/ });
	t.match(await reasonOf(prepare(view(folder), "../c")), { reason: "spec.invalid" });
	const file = join(folder, "broken.ext4");
	writeFileSync(file, "no file system");
	const broken = await reasonOf(prepare([{ type: "ext4", source: file, target: "", options: ["ro"] }], "c2"));
	t.match(broken, { reason: "storage.image", message: /mount: .*wrong fs type|mount: .*failed/s });
	const without = new RootfsImages({ cacheDir: join(folder, "cache"), maxBytes: 1, mkfsPath: "mkfs.erofs-missing" });
	const error = await reasonOf(
		without.prepare({ mounts: view(layer(folder, "l", {})), rootfsDir: "", owner: "pod", name: "c3", scope: new Scope("x") }),
	);
	t.match(error, { reason: "storage.image", remedy: /apt install erofs-utils/ });
	const unwritable = new RootfsImages({ cacheDir: file, maxBytes: 1 });
	t.match(await reasonOf(unwritable.prepare({ mounts: view(folder), rootfsDir: "", owner: "pod", name: "c", scope: new Scope("x") })), {
		reason: "storage.image",
		message: /ENOTDIR|EEXIST/,
	});
	t.same(left(), []);
});

t.test("a cache folder that can't hold files is refused at once, with its key, and nothing is made there", async (t) => {
	const { folder } = place(t);
	const sealed = join(folder, "sealed");
	mkdirSync(sealed);
	execFileSync("mount", ["-t", "tmpfs", "-o", "ro", "none", sealed]);
	t.teardown(() => execFileSync("umount", [sealed]));
	const mounts = view(layer(folder, "l", { a: "1" }));
	for (const cacheDir of ["/proc/x/y", "/sys/x", join(sealed, "x")]) {
		const images = new RootfsImages({ cacheDir, maxBytes: 1 });
		const error = await reasonOf(images.prepare({ mounts, rootfsDir: "", owner: "pod", name: "c", scope: new Scope("x") }));
		t.match(error, { reason: "storage.image", message: new RegExp(cacheDir), remedy: /storage\.cache_dir/ });
		t.notOk(existsSync(cacheDir), cacheDir);
	}
});

t.test("a converter that outlives its kill holds nobody up and keeps its files, until a later sweep", async (t) => {
	const { folder } = place(t);
	const talk = mkdtempSync(join(tmpdir(), "snp-"));
	execFileSync("mkfifo", [join(talk, "runs")]);
	const mkfs = join(talk, "mkfs");
	// Its child keeps the pipe open that tells of its end.
	writeFileSync(mkfs, `#!/bin/sh\nsetsid sleep 1000 &\necho $! >${talk}/runs\nwait\n`, { mode: 0o755 });
	const reader = spawn("cat", [join(talk, "runs")], { stdio: ["ignore", "pipe", "inherit"] });
	const images = new RootfsImages({ cacheDir: join(folder, "cache"), maxBytes: MEBIBYTE, mkfsPath: mkfs });
	const abort = new AbortController();
	const scope = new Scope("stuck");
	const upper = layer(folder, "upper", { b: "2" });
	const options = [`lowerdir=${layer(folder, "l", { a: "1" })}`, `upperdir=${upper}`, `workdir=${folder}`];
	const mounts = [{ type: "overlay", source: "overlay", target: "", options }];
	const asked = reasonOf(images.prepare({ mounts, rootfsDir: "", owner: "pod", name: "c", scope, signal: abort.signal }));
	const pid = Number(((await once(reader.stdout, "data")) as [Buffer])[0].toString());
	t.teardown(() => {
		process.kill(pid, "SIGKILL");
		rmSync(talk, { recursive: true });
	});
	abort.abort();
	t.equal((await asked).reason, "wait.canceled");
	await scope.close();
	t.ok(existsSync(`/proc/${pid}`));
	t.match(readdirSync(join(folder, "cache/rootfs/building")), [/erofs\.d$/]);
});

t.test("a full disk is named, and the half image is gone", async (t) => {
	const disk = mkdtempSync(join(tmpdir(), "snp-"));
	execFileSync("mount", ["-t", "tmpfs", "-o", "size=256k", "none", disk]);
	t.teardown(() => {
		execFileSync("umount", [disk]);
		rmSync(disk, { recursive: true });
	});
	const { folder, prepare } = place(t, { cacheDir: disk });
	const big = layer(folder, "big", { big: "x".repeat(2 * MEBIBYTE) });
	const error = await reasonOf(prepare(view(big), "c"));
	t.equal(error.reason, "storage.full", error.message);
	t.ok(error.message.includes(disk));
	t.same(
		readdirSync(join(disk, "rootfs/building")).filter((name) => name.includes("erofs")),
		[],
	);
	writeFileSync(join(disk, "fill"), "");
	t.match(await prepare(view(layer(folder, "small", { a: "1" })), "c2"), { cached: false }, "there is room again");
});

t.test("an abort ends the conversion at once, but not for others who wait for it", async (t) => {
	const { folder } = place(t);
	// A converter that waits until it is told to go on, and says that it runs.
	const talk = mkdtempSync(join(tmpdir(), "snp-"));
	t.teardown(() => rmSync(talk, { recursive: true }));
	execFileSync("mkfifo", [join(talk, "runs"), join(talk, "go")]);
	const mkfs = join(talk, "mkfs");
	writeFileSync(mkfs, `#!/bin/sh\necho $$ >${talk}/runs\nread line <${talk}/go\nexec mkfs.erofs "$@"\n`, { mode: 0o755 });
	const slow = new RootfsImages({ cacheDir: join(folder, "cache"), maxBytes: MEBIBYTE, mkfsPath: mkfs });
	const scope = new Scope("slow");
	t.teardown(() => scope.close());
	const mounts = view(layer(folder, "l", { a: "1" }));
	const ask = (name: string, signal?: AbortSignal): Promise<RootfsImage> =>
		slow.prepare({ mounts, rootfsDir: "", owner: "pod", name, scope, signal });
	// One reader for all, which is a writer too: what is written while no other has the FIFO open is not lost.
	const reader = spawn("sh", ["-c", `exec cat <>${talk}/runs`], { stdio: ["ignore", "pipe", "inherit"] });
	t.teardown(() => reader.kill());
	const runs = async (): Promise<number> => Number(((await once(reader.stdout, "data")) as [Buffer])[0].toString());

	const abort = new AbortController();
	const first = reasonOf(ask("c1", abort.signal));
	const pid = await runs();
	t.ok(existsSync(`/proc/${pid}`));
	abort.abort();
	t.equal((await first).reason, "wait.canceled");

	const again = new AbortController();
	const second = reasonOf(ask("c2", again.signal));
	const third = ask("c3");
	await runs();
	t.notOk(existsSync(`/proc/${pid}`) && !/zombie/.test(readFileSync(`/proc/${pid}/status`, "utf8")), "the first converter is gone");
	again.abort();
	t.equal((await second).reason, "wait.canceled");
	writeFileSync(join(talk, "go"), "\n");
	t.same(contents(await third), { a: "1" });
});
