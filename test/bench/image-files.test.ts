/** Which way containers of a scenario got their images. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { requireLayers } from "../../bench/image-files.ts";

t.test("images in layers pass; a flattened one among them, and none at all, do not", async (t) => {
	const rootDir = mkdtempSync(join(tmpdir(), "snp-images-"));
	t.teardown(() => rmSync(rootDir, { recursive: true }));
	t.throws(() => requireLayers({ rootDir }), /no container had a disk/);
	const folder = join(rootDir, "images/rootfs");
	mkdirSync(join(folder, "pods"), { recursive: true });
	t.throws(() => requireLayers({ rootDir }), /no container had a disk/);
	writeFileSync(join(folder, "layers-01.erofs"), "");
	requireLayers({ rootDir });
	writeFileSync(join(folder, "ab.erofs"), "");
	t.throws(() => requireLayers({ rootDir }), /flattened images instead of layers: ab\.erofs/);
});
