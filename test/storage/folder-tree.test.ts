import { execFileSync } from "node:child_process";
import { chmodSync, chownSync, linkSync, mkdirSync, rmSync, statSync, symlinkSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { deviceName, measureTree, readTree } from "../../shim/storage/folder-tree.ts";
import type { TreeEntry, TreeOptions } from "../../shim/storage/folder-tree.ts";

const BOUNDS = { maxBytes: 8 * 1024 * 1024, maxEntries: 100, kernelDevices: new Set<string>(), hardLinks: true };

async function all(path: string, more: Partial<TreeOptions> = {}): Promise<Map<string, TreeEntry[]>> {
	const found = new Map<string, TreeEntry[]>();
	for await (const entry of readTree({ path, ...BOUNDS, ...more })) {
		const name = entry.path.toString("latin1");
		found.set(name, [...(found.get(name) ?? []), entry]);
	}
	return found;
}

t.test("a folder is told with modes, owners, links and times, folders first", async (t) => {
	const folder = t.testdir({ a: { f: "content", empty: "" } });
	chmodSync(join(folder, "a"), 0o2750);
	chmodSync(join(folder, "a/f"), 0o400);
	chownSync(join(folder, "a/f"), 12, 34);
	utimesSync(join(folder, "a/f"), 1_500_000_000, 1_500_000_000);
	linkSync(join(folder, "a/f"), join(folder, "a/g"));
	symlinkSync("/etc/passwd", join(folder, "l"));
	execFileSync("mkfifo", [join(folder, "pipe")]);
	const odd = Buffer.concat([Buffer.from(`${folder}/`), Buffer.from([0xff, 0x2e])]);
	writeFileSync(odd, "x");
	const found = await all(folder);
	t.equal([...found.keys()][0], "");
	t.match(found.get("a")?.[0], { kind: "folder", mode: 0o2750 });
	const [first, second] = [found.get("a/f")?.[0], found.get("a/g")?.[0]].sort((one) => (one?.kind === "piece" ? -1 : 1));
	t.match(first, { kind: "piece", mode: 0o400, uid: 12, gid: 34, last: true, sizeBytes: 7, modifiedNs: 1_500_000_000_000_000_000n });
	t.equal(first?.kind === "piece" ? first.data.toString() : "", "content");
	t.match(second, { kind: "hard-link", first: first?.path });
	t.match(found.get("a/empty")?.[0], { kind: "piece", last: true, sizeBytes: 0 });
	t.match(found.get("l")?.[0], { kind: "link", target: Buffer.from("/etc/passwd") });
	t.match(found.get("pipe")?.[0], { kind: "left-out", what: "FIFO" });
	t.ok(found.has("\xff."));
});

t.test("a large file comes in pieces, and a file alone has an empty path", async (t) => {
	const folder = t.testdir({ f: Buffer.alloc(2.5 * 1024 * 1024, 7) });
	const pieces = (await all(join(folder, "f"))).get("") ?? [];
	t.same(
		pieces.map((piece) => (piece.kind === "piece" ? [piece.offset, piece.data.length, piece.last] : [])),
		[
			[0, 1024 * 1024, false],
			[1024 * 1024, 1024 * 1024, false],
			[2 * 1024 * 1024, 512 * 1024, true],
		],
	);
});

t.test("a file that is cut while it is read ends there", async (t) => {
	const path = join(t.testdir({ f: Buffer.alloc(3 * 1024 * 1024) }), "f");
	const seen: boolean[] = [];
	for await (const entry of readTree({ path, ...BOUNDS })) {
		truncateSync(path, 0);
		if (entry.kind === "piece") seen.push(entry.last);
	}
	t.same(seen, [false, true]);
});

t.test("bounds are kept, with the size and the key in the error", async (t) => {
	const folder = t.testdir({ a: "x".repeat(100), b: "y".repeat(100) });
	t.same(await measureTree({ path: folder, ...BOUNDS }), { bytes: 200, entries: 3, complete: true });
	await t.rejects(all(folder, { maxBytes: 150 }), { reason: "volume.too-large", message: /storage\.copy_max_mib/ });
	await t.rejects(all(folder, { maxEntries: 2 }), { reason: "volume.too-large", message: /more than 2 .*storage\.copy_max_entries/ });
	t.equal((await measureTree({ path: folder, ...BOUNDS, maxEntries: 1 })).complete, false);
});

t.test("a path that is not there, or goes meanwhile, is named", async (t) => {
	const folder = t.testdir({ v: { a: "1", b: "2", c: "3" } });
	const path = join(folder, "v");
	await t.rejects(all(join(folder, "none")), { reason: "volume.missing", message: /none/ });
	await t.rejects(
		async () => {
			for await (const _ of readTree({ path, ...BOUNDS })) rmSync(path, { recursive: true, force: true });
		},
		{ reason: "volume.missing", message: /v of the node/ },
	);
});

t.test("a link that takes a folder's place is not followed", async (t) => {
	const folder = t.testdir({ v: { a: { secret: "1" } }, other: { secret: "2" } });
	const path = join(folder, "v");
	const names: string[] = [];
	for await (const entry of readTree({ path, ...BOUNDS })) {
		names.push(entry.path.toString());
		if (entry.path.length > 0) continue;
		rmSync(join(path, "a"), { recursive: true });
		symlinkSync(join(folder, "other"), join(path, "a"));
	}
	t.notOk(names.includes("a/secret"));
});

t.test("file systems of the kernel are left out", async (t) => {
	const proc = deviceName(statSync("/proc", { bigint: true }).dev);
	const folder = t.testdir({});
	mkdirSync(join(folder, "p"));
	execFileSync("mount", ["--bind", "/proc/sys", join(folder, "p")]);
	const found = await all(folder, { kernelDevices: new Set([proc]) }).finally(() => execFileSync("umount", [join(folder, "p")]));
	t.match(found.get("p")?.[0], { kind: "left-out" });
	t.equal(found.size, 2);
});

t.test("a caller that gives up ends the reading", async (t) => {
	await t.rejects(all(t.testdir({ a: "1" }), { signal: AbortSignal.abort(new Error("enough")) }), { message: /enough/ });
});
