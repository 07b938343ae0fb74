/** The disk with a confidential guest's initdata. */

import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import t from "tap";

import { initdataImage, writeInitdataDisk } from "../../shim/pod/initdata-disk.ts";
import { randomBytes, randomSource } from "../support/random.ts";

t.test("the image is magic, length and content, filled up to whole sectors", async (t) => {
	const random = randomSource(6);
	for (const bytes of [0, 1, 495, 496, 497, 1024 * 1024]) {
		const gzip = randomBytes(random, bytes);
		const image = initdataImage(gzip);
		t.equal(image.length % 512, 0);
		t.ok(image.length - bytes - 16 < 512);
		t.equal(image.subarray(0, 8).toString("latin1"), "initdata");
		t.equal(image.readBigUInt64LE(8), BigInt(bytes));
		t.ok(image.subarray(16, 16 + bytes).equals(gzip));
		t.ok(image.subarray(16 + bytes).every((byte) => byte === 0));
	}
});

t.test("the file lies in the pod's folder, for its owner alone; a folder that is gone is named", async (t) => {
	const folder = t.testdir();
	const disk = writeInitdataDisk(folder, Buffer.from("x"));
	t.same(disk, { id: "initdata", path: join(folder, "initdata.img") });
	t.equal(statSync(disk.path).mode & 0o777, 0o600);
	t.equal(readFileSync(disk.path).length, 512);
	t.throws(() => writeInitdataDisk(join(folder, "none"), Buffer.from("x")), {
		reason: "journal.write",
		message: /none\/initdata\.img.*ENOENT/,
	});
});
