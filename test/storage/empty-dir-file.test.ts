import { existsSync, mkdirSync, readdirSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import t from "tap";
import { diskBytes, emptyDirFile, makeEmptyDirFile } from "../../shim/storage/empty-dir-file.ts";
import { failing } from "../base/failing.ts";

const MIB = 1024 * 1024;
const [OLD, NEW] = ["0".repeat(32), "1".repeat(32)];

t.test("the file is sparse, for its owner alone, and takes the place of those of earlier sandboxes; nothing else goes", async (t) => {
	const folder = t.testdir({ kept: "by somebody", "containerd-shim-snp-notes.img": "no file of ours" });
	const old = await emptyDirFile(folder, OLD);
	writeFileSync(old, "what nobody can read any more");
	const file = await emptyDirFile(folder, NEW);
	await makeEmptyDirFile(file, undefined, 300 * MIB);
	t.notOk(existsSync(old));
	t.same(readdirSync(folder).sort(), ["containerd-shim-snp-notes.img", `containerd-shim-snp-${NEW}.img`, "kept"].sort());
	t.match(statSync(file), { size: 300 * MIB, blocks: 0 });
	t.equal(statSync(file).mode & 0o777, 0o600);
	await makeEmptyDirFile(file, 100 * MIB, 300 * MIB);
	t.equal(statSync(file).size, diskBytes(100 * MIB));
	await makeEmptyDirFile(file, 400 * MIB, 300 * MIB);
	t.equal(statSync(file).size, 300 * MIB, "never larger than the node allows");
});

t.test("a disk has room for its limit and for the file system's own, and is never smaller than the guest takes", (t) => {
	t.equal(diskBytes(1), 48 * MIB);
	t.equal(diskBytes(64 * MIB), (64 + 8 + 32) * MIB);
	t.equal(diskBytes(100 * 1024 * MIB), (100 * 1024 + 512 + 32) * MIB);
	t.end();
});

t.test("no symbolic link leads to the file; a folder that is gone is named", async (t) => {
	const dir = t.testdir({});
	mkdirSync(join(dir, "real"));
	symlinkSync("real", join(dir, "link"));
	t.equal(dirname(await emptyDirFile(join(dir, "link"), NEW)), join(dir, "real"));
	await t.rejects(emptyDirFile(join(dir, "gone"), NEW), failing({ reason: "volume.missing", message: /gone/ }));
});

t.test("a folder that kubelet has removed meanwhile stays away; one that can't have the file is named", async (t) => {
	const dir = t.testdir({ other: {} });
	const gone = join(dir, "gone");
	await t.rejects(makeEmptyDirFile(join(gone, "file"), undefined, MIB), failing({ reason: "volume.missing", message: /emptyDir .*gone/ }));
	t.notOk(existsSync(gone));
	const taken = await emptyDirFile(join(dir, "other"), NEW);
	mkdirSync(taken);
	await t.rejects(makeEmptyDirFile(taken, undefined, MIB), failing({ reason: "storage.scratch", message: /emptyDir .*other/ }));
});
