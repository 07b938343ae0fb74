/** The folder of images. */

import { existsSync, readdirSync, writeFileSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";

import { ImageCache } from "../../shim/storage/image-cache.ts";

/** More turns than a late step could take. */
const TURNS = 50;

t.test("nothing of an attempt to take an image that is not there goes on afterwards", async (t) => {
	const folder = t.testdir();
	const cache = new ImageCache(folder, "");
	await cache.ready();
	for (let round = 0; round < 5; round++) {
		const path = cache.podPath(`pod${round}`, "c");
		t.equal(await cache.take(`key${round}`, path), false);
		// Somebody else makes it at that moment.
		writeFileSync(cache.imagePath(`key${round}`), "");
		for (let turn = 0; turn < TURNS; turn++) await readdir(folder);
		t.notOk(existsSync(path));
		t.equal(await cache.take(`key${round}`, path), true);
	}
	t.equal(readdirSync(join(folder, "rootfs")).filter((name) => name.endsWith(".erofs")).length, 5);
});
