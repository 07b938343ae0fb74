import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { gzipSync } from "node:zlib";
import t from "tap";
import { imageFiles } from "../../shim/storage/archive-files.ts";
import type { ImageLayer } from "../../shim/storage/image-layers.ts";
import { tar, type Member } from "../support/archive.ts";
import { randomSource } from "../support/random.ts";

const { signal } = new AbortController();

function layerOf(bytes: Buffer, pieces?: readonly number[]): ImageLayer {
	const chunks: Buffer[] = [];
	let at = 0;
	for (const size of pieces ?? [bytes.length]) chunks.push(bytes.subarray(at, (at += size)));
	chunks.push(bytes.subarray(at));
	return { diffId: "sha256:x", digest: "sha256:y", open: async () => Readable.from(chunks.filter((chunk) => chunk.length > 0)) };
}

const file = (path: string, text: string): Member => ({ kind: "file", path, data: Buffer.from(text) });
const layer = (...members: Member[]): ImageLayer => layerOf(tar(members));
const read = (layers: ImageLayer[]) => imageFiles(layers, ["etc/passwd", "etc/group"], signal);

t.test("the topmost layer with a file has it", async (t) => {
	const lower = layer(file("etc/passwd", "lower"), file("etc/group", "group"), file("bin/sh", "x".repeat(100_000)));
	t.strictSame(await read([lower]), ["lower", "group"]);
	t.strictSame(await read([lower, layer(file("./etc/passwd", "upper"))]), ["upper", "group"]);
	t.strictSame(await read([layer(file("a", "b"))]), [undefined, undefined]);
	t.strictSame(await read([]), [undefined, undefined]);
});

t.test("whiteouts hide what lies below", async (t) => {
	const lower = layer(file("etc/passwd", "lower"), file("etc/group", "group"));
	t.strictSame(await read([lower, layer(file("etc/.wh.passwd", ""))]), [undefined, "group"]);
	t.strictSame(await read([lower, layer(file(".wh.etc", ""))]), [undefined, undefined]);
	t.strictSame(await read([lower, layer(file("etc/.wh..wh..opq", ""), file("etc/group", "new"))]), [undefined, "new"]);
});

t.test("packed archives, in pieces of any size", async (t) => {
	const folder = mkdtempSync(join(tmpdir(), "snp-"));
	t.teardown(() => rmSync(folder, { recursive: true, force: true }));
	const long = "long/".repeat(30);
	for (const place of [long, "etc"]) mkdirSync(join(folder, place), { recursive: true });
	writeFileSync(join(folder, long, "passwd"), "1");
	writeFileSync(join(folder, "etc/passwd"), "p".repeat(3000));
	writeFileSync(join(folder, "etc/group"), "g");
	const archives = ["gnu", "pax"].map((format) => execFileSync("tar", ["-C", folder, `--format=${format}`, "-cf", "-", long, "etc"]));
	const random = randomSource(7);
	for (const packed of [...archives, ...archives.map((archive) => gzipSync(archive))]) {
		const pieces = Array.from({ length: 40 }, () => 1 + random(100));
		t.strictSame(await read([layerOf(packed, pieces)]), ["p".repeat(3000), "g"]);
	}
});

t.test("what can't be read is named", async (t) => {
	const zstd = layerOf(Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0, 0]));
	await t.rejects(read([zstd]), { reason: "storage.layer", message: /zstd/, remedy: /runAsUser/ });
	await t.rejects(read([layerOf(gzipSync(Buffer.alloc(1000, 1)).subarray(0, 12))]), { reason: "storage.layer", message: /can't be read/ });
	const header = tar([file("etc/passwd", "x")]);
	header.write("zzzzzzzzzzz", 124);
	await t.rejects(read([layerOf(header)]), { reason: "storage.layer", message: /no number/ });
});
