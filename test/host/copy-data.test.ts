/** Copies of sparse files. */
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { copyData } from "../../native/src/file.ts";

const MIB = 1024 * 1024;

t.test("data is copied to its place, holes stay holes, and what was there before is gone", async (t) => {
	const folder = mkdtempSync("/tmp/copy-");
	const from = openSync(join(folder, "from"), "w+");
	const to = openSync(join(folder, "to"), "w+");
	t.teardown(() => {
		for (const fd of [from, to]) closeSync(fd);
		rmSync(folder, { recursive: true, force: true });
	});
	writeSync(from, Buffer.alloc(3 * MIB + 5, "a"), 0, undefined, 16 * MIB);
	writeSync(from, "end", 40 * MIB);
	ftruncateSync(from, 64 * MIB);
	writeSync(to, Buffer.alloc(2 * MIB, "x"), 0, undefined, 0);
	const copied = await copyData(from, to);
	t.ok(copied >= 3 * MIB + 8 && copied < 8 * MIB, `${copied} bytes were data`);
	t.ok(readFileSync(join(folder, "to")).equals(readFileSync(join(folder, "from"))), "both hold the same");
	const { size, blocks } = statSync(join(folder, "to"));
	t.equal(size, 64 * MIB);
	t.ok(blocks * 512 < 8 * MIB, "holes take no room");
	await t.rejects(copyData(from, openSync("/dev/null", "r")), { code: /EINVAL|EBADF|ENODEV/u });
});
