import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { brotliCompressSync, brotliDecompressSync } from "node:zlib";
import t from "tap";
import { releaseConstantPages } from "../../shim/host/own-pages.ts";

const MIB = 1024 * 1024;

/** Resident bytes of this process that are as in their files, and those that are its own (proc(5), smaps_rollup). */
function resident(): { readonly files: number; readonly own: number } {
	const text = readFileSync("/proc/self/smaps_rollup", "utf8");
	const bytes = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, "mu").exec(text)?.[1]) * 1024;
	return { files: bytes("Rss") - bytes("Anonymous"), own: bytes("Anonymous") };
}

t.test("pages of programs are given back, and come back when they are needed", async (t) => {
	const before = resident();
	const released = releaseConstantPages();
	const after = resident();
	t.ok(released > 16 * MIB, `most of Node.js, which has been at work: ${released} bytes`);
	t.ok(before.files - after.files > released / 2, "most of it is gone at once: what other threads run comes back meanwhile");
	t.ok(after.own > before.own - 4 * MIB, "what is this process's own stays");
	const text = "all of it works on ".repeat(1000);
	t.equal(brotliDecompressSync(brotliCompressSync(text)).toString(), text);
	t.equal(createHash("sha256").update("abc").digest("hex").slice(0, 8), "ba7816bf");
	t.throws(() => JSON.parse("{"), SyntaxError);
	t.ok(resident().files > after.files);
});
