/** Mounts, file systems and sockets of the host. Needs root. */

import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { t } from "tap";
import type { Test } from "tap";

import { MS, mount as mountRaw } from "../../native/src/mount.ts";
import { connectUnix } from "../../native/src/socket.ts";
import { ShimError } from "../../shim/base/errors.ts";
import { Scope } from "../../shim/base/scope.ts";
import { makeFifo, spaceAt } from "../../shim/host/filesystem.ts";
import { parseMountOptions } from "../../shim/host/mount-options.ts";
import { mountIn, mountsUnder, unmount, unmountUnder } from "../../shim/host/mounts.ts";
import { closeFd, listenUnix } from "../../shim/host/sockets.ts";

function folder(t: Test): string {
	const path = mkdtempSync(join(tmpdir(), "snp-"));
	t.teardown(async () => {
		await unmountUnder(path);
		rmSync(path, { recursive: true, force: true });
	});
	return path;
}

t.test("parseMountOptions: flags, propagation, data, loop; the later word wins", async (t) => {
	t.same(parseMountOptions(["ro", "nosuid", "nodev", "noexec", "rprivate", "loop", "lowerdir=/a:/b", "index=off", ""]), {
		flags: MS.RDONLY + MS.NOSUID + MS.NODEV + MS.NOEXEC,
		propagation: MS.PRIVATE + MS.REC,
		data: "lowerdir=/a:/b,index=off",
		loop: true,
	});
	t.same(parseMountOptions(["rbind", "ro", "rw", "noatime", "atime", "defaults"]), {
		flags: MS.BIND + MS.REC,
		propagation: 0,
		data: "",
		loop: false,
	});
	t.match(parseMountOptions(["constructor", "lazytime"]), { flags: MS.LAZYTIME, data: "constructor" });
});

t.test("mountIn: bind mounts get their flags, and the scope unmounts", async (t) => {
	const root = folder(t);
	const [source, place] = [join(root, "a"), join(root, "place with a space")];
	mkdirSync(source);
	mkdirSync(place);
	writeFileSync(join(source, "file"), "text");
	const scope = new Scope("test");
	await mountIn(scope, { type: "tmpfs", source: "none", options: ["size=1m", "mode=750"] }, place);
	t.equal(statSync(place).mode & 0o777, 0o750);
	await mountIn(scope, { type: "bind", source, options: ["rbind", "ro", "rprivate"] }, place);
	t.same(await mountsUnder(root), [place, place]);
	t.equal(readFileSync(join(place, "file"), "utf8"), "text");
	t.throws(() => writeFileSync(join(place, "file"), "new"), { code: "EROFS" });
	await scope.close();
	t.same(await mountsUnder(root), []);
	await unmount(place);
	await unmount(join(root, "missing"));
});

t.test("mountIn: a failure names both ends and leaves no mount", async (t) => {
	const root = folder(t);
	const scope = new Scope("test");
	const error = await mountIn(scope, { type: "overlay", source: "overlay", options: ["lowerdir=/no/such"] }, root).catch(
		(error: unknown) => error,
	);
	t.ok(error instanceof ShimError && error.reason === "storage.mount" && error.message.includes(root) && error.message.includes("overlay"));
	await t.rejects(mountIn(scope, { type: "erofs", source: "/x", options: ["loop"] }, root), { message: /loop device/ });
	await t.rejects(mountRaw("none", root, "tmpfs", 0, "x".repeat(5000)), RangeError);
	await t.rejects(mountRaw("no\0ne", root, "tmpfs", 0, ""), TypeError);
	t.same(await mountsUnder(root), []);
});

t.test("unmountUnder: everything below a folder, nothing beside it", async (t) => {
	const root = folder(t);
	const beside = `${root}-beside`;
	const inner = join(root, "1");
	mkdirSync(beside);
	t.teardown(() => rmSync(beside, { recursive: true, force: true }));
	const scope = new Scope("beside");
	await mountIn(scope, { type: "tmpfs", source: "none", options: [] }, beside);
	await mountRaw("none", root, "tmpfs", 0, "");
	mkdirSync(inner);
	await mountRaw("none", inner, "tmpfs", 0, "");
	await unmountUnder(root);
	t.same(await mountsUnder(root), []);
	t.same(await mountsUnder(beside), [beside]);
	await scope.close();
});

t.test("spaceAt and makeFifo", async (t) => {
	const root = folder(t);
	const space = await spaceAt(root);
	t.ok(space.totalBytes > space.freeBytes && space.freeBytes > 0);
	makeFifo(join(root, "f"), 0o600);
	t.ok(statSync(join(root, "f")).isFIFO());
	t.throws(() => makeFifo(join(root, "f"), 0o600), { code: "EEXIST", syscall: "mkfifo" });
	t.throws(() => closeFd(1_000_000), { code: "EBADF" });
});

t.test("listenUnix: a listening socket for this user only, that a server can take over", async (t) => {
	const path = join(folder(t), "s.sock");
	const fd = listenUnix(path);
	t.equal(statSync(path).mode & 0o777, 0o600);
	t.throws(() => listenUnix(path), { code: "EADDRINUSE" });
	t.throws(() => listenUnix(`/tmp/${"x".repeat(103)}`), { code: "ENAMETOOLONG" });
	t.throws(() => connectUnix(`${path}.no`), { code: "ENOENT" });
	const server = createServer((socket) => socket.end("hello"));
	server.listen({ fd });
	const client = connectUnix(path);
	closeFd(client);
	await new Promise((resolve) => server.close(resolve));
	t.throws(() => connectUnix(path), { code: "ECONNREFUSED" });
});
