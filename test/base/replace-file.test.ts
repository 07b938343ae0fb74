/** A file that is replaced is the old one or the new one. */

import { chmodSync, openSync, readdirSync, readFileSync, statSync, closeSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { replaceFile } from "../../shim/base/replace-file.ts";

t.test("replaceFile", async (t) => {
	const folder = t.testdir({ file: "old" });
	const path = join(folder, "file");
	chmodSync(path, 0o644);
	const open = openSync(path, "r");
	t.teardown(() => closeSync(open));
	replaceFile(path, Buffer.from("new"));
	t.equal(readFileSync(path, "utf8"), "new");
	t.equal(statSync(path).mode & 0o777, 0o600);
	t.equal(readFileSync(open, "utf8"), "old", "who has it open keeps it");
	t.throws(() => replaceFile(join(folder, "missing/file"), "x"), { code: "ENOENT" });
	const taken = t.testdir({ place: { inside: "" } });
	t.throws(() => replaceFile(join(taken, "place"), "x"), { code: "EISDIR" });
	t.strictSame(readdirSync(taken), ["place"], "nothing is left of one that failed");
});
