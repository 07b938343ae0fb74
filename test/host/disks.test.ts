/** Disks of the node. Needs root and loop devices. */
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, statSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { deviceNumbers, diskAt, diskByNumber, usedByNode } from "../../shim/host/disks.ts";

const MIB = 1024 * 1024;

function folder(t: Test): string {
	const path = mkdtempSync(join(tmpdir(), "snp-"));
	t.teardown(() => rmSync(path, { recursive: true, force: true }));
	return path;
}

/** A loop device on a new file of 4 MiB. */
function loop(t: Test, dir: string, ...options: readonly string[]): string {
	const file = join(dir, "image");
	writeFileSync(file, "");
	truncateSync(file, 4 * MIB);
	const device = execFileSync("losetup", ["--find", "--show", ...options, file], { encoding: "utf8" }).trim();
	t.teardown(() => execFileSync("losetup", ["--detach", device]));
	return device;
}

t.test("deviceNumbers: as the C library splits them", async (t) => {
	t.same(deviceNumbers(1795), { major: 7, minor: 3 });
	t.same(deviceNumbers(66_309), { major: 259, minor: 5 });
	t.same(deviceNumbers(1_227_947_744), { major: 254, minor: 300_000 });
	t.same(deviceNumbers(4_294_967_295), { major: 4095, minor: 1_048_575 });
});

t.test("a block device is found by its number and by its paths, as one disk", async (t) => {
	const dir = folder(t);
	const device = loop(t, dir);
	const { major, minor } = deviceNumbers(statSync(device).rdev);
	symlinkSync(device, join(dir, "link"));
	const disk = { path: device, key: `block ${major}:${minor}`, readonly: false };
	t.same(await diskByNumber(major, minor), disk);
	t.same(await diskAt(device), disk);
	t.same(await diskAt(join(dir, "link")), disk);
	t.equal(await diskByNumber(4000, 1), undefined);
});

t.test("a disk that takes no writes is told", async (t) => {
	t.equal((await diskAt(loop(t, folder(t), "--read-only")))?.readonly, true);
});

t.test("a plain file is a disk; a folder and nothing are none", async (t) => {
	const dir = folder(t);
	writeFileSync(join(dir, "image"), "");
	t.same(await diskAt(join(dir, "image")), { path: join(dir, "image"), key: `file ${join(dir, "image")}`, readonly: false });
	t.equal(await diskAt(dir), undefined);
	t.equal(await diskAt(join(dir, "none")), undefined);
	t.equal(await diskAt("/dev/null"), undefined);
});

t.test("a device that is mounted is in use by the node", async (t) => {
	const dir = folder(t);
	const device = loop(t, dir);
	const disk = await diskAt(device);
	if (disk === undefined) throw new Error(`no disk at ${device}`);
	t.equal(await usedByNode(disk), false);
	execFileSync("mkfs.ext4", ["-q", device]);
	mkdirSync(join(dir, "place"));
	execFileSync("mount", [device, join(dir, "place")]);
	try {
		t.equal(await usedByNode(disk), true);
	} finally {
		execFileSync("umount", [join(dir, "place")]);
	}
	t.equal(await usedByNode(disk), false);
});
