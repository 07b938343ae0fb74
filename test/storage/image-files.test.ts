import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { gzipSync } from "node:zlib";
import t from "tap";
import { imageFiles } from "../../shim/storage/image-files.ts";
import type { ImageLayer } from "../../shim/storage/image-layers.ts";
import { tar, type Member } from "../support/archive.ts";

const READ_MS = 60_000;
const digestOf = (bytes: Buffer): string => `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
const file = (path: string, text: string): Member => ({ kind: "file", path, data: Buffer.from(text) });

function layerOf(archive: Buffer, packed: Buffer = archive): ImageLayer {
	return {
		diffId: digestOf(archive),
		digest: digestOf(packed),
		open: async () => Readable.from([packed.subarray(0, 7), packed.subarray(7)]),
	};
}
const layer = (...members: Member[]): ImageLayer => layerOf(tar(members));
const read = (layers: ImageLayer[]) => imageFiles(layers, ["etc/passwd", "etc/group"], { timeoutMs: READ_MS });

t.test("the topmost layer with a file has it, and whiteouts hide what lies below", async (t) => {
	const lower = layer(file("etc/passwd", "lower"), file("etc/group", "group"), file("bin/sh", "x".repeat(100_000)));
	t.strictSame(await read([lower, layer(file("./etc/passwd", "upper"))]), ["upper", "group"]);
	t.strictSame(await read([lower, layer(file("etc/.wh.passwd", ""))]), [undefined, "group"]);
	t.strictSame(await read([lower, layer(file("etc/.wh..wh..opq", ""), file("etc/group", "new"))]), [undefined, "new"]);
	t.strictSame(await read([layer(file("a", "b"))]), [undefined, undefined]);
	t.strictSame(await read([]), [undefined, undefined]);
});

t.test("archives of GNU's and of pax's form, packed with gzip or zstd", async (t) => {
	const folder = mkdtempSync(join(tmpdir(), "snp-"));
	t.teardown(() => rmSync(folder, { recursive: true, force: true }));
	const long = "long/".repeat(30);
	for (const place of [long, "etc"]) mkdirSync(join(folder, place), { recursive: true });
	writeFileSync(join(folder, long, "passwd"), "1");
	writeFileSync(join(folder, "etc/passwd"), "p".repeat(3000));
	writeFileSync(join(folder, "etc/group"), "g");
	for (const format of ["gnu", "pax"]) {
		const archive = execFileSync("tar", ["-C", folder, `--format=${format}`, "-cf", "-", long, "etc"]);
		const zstd = execFileSync("zstd", ["--quiet", "--stdout"], { input: archive });
		for (const packed of [archive, gzipSync(archive), zstd]) t.strictSame(await read([layerOf(archive, packed)]), ["p".repeat(3000), "g"]);
	}
});

t.test("what can't be read, or is another layer than the image names, is refused", async (t) => {
	const archive = tar([file("etc/passwd", "root:x:0:0::/:/bin/sh\n")]);
	const cut = gzipSync(archive).subarray(0, 40);
	await t.rejects(read([layerOf(archive, cut)]), { reason: "storage.layer", message: /can't be decompressed/ });
	const other = tar([file("etc/passwd", "evil:x:0:0::/:/bin/sh\n")]);
	await t.rejects(read([{ ...layerOf(archive), open: layerOf(other).open }]), {
		reason: "storage.layer",
		message: /has the digest sha256/,
	});
	await t.rejects(read([{ ...layerOf(archive), open: async () => Readable.from(gzipSync(other)) }]), {
		reason: "storage.layer",
		message: /digest/,
	});
	await t.rejects(read([layer(file("etc/passwd", "x".repeat((4 << 20) + 1)))]), { reason: "storage.layer", message: /4194305 bytes/ });
});
