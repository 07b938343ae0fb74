/** Layer files: the same bytes wherever and whenever they are made, what `tar x` gives, and refused by name when the archive is hostile. Needs root and erofs. */

import { execFileSync, spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { t } from "tap";
import type { Test } from "tap";

import { tar } from "../support/archive.ts";
import type { Member } from "../support/archive.ts";
import { distBinDir, repositoryDir } from "../support/paths.ts";
import { randomSource } from "../support/random.ts";

const PROGRAM = join(distBinDir, "snp-layers");
const TREE = join(repositoryDir, "test/support/tree.py");
const ZERO_SALT = "0".repeat(64);
const BLOCK = 4096;

interface Description {
	readonly diffId: string;
	readonly dataBytes: number;
	readonly treeBytes: number;
	readonly rootHash: string;
	readonly implicit: number;
}

function folder(t: Test): string {
	const made = mkdtempSync(join(tmpdir(), "snp-"));
	t.teardown(() => rmSync(made, { recursive: true, force: true }));
	mkdirSync(join(made, "staging"));
	return made;
}

const digestOf = (data: Buffer): string => `sha256:${createHash("sha256").update(data).digest("hex")}`;

/** The command line that converts a blob which is a plain tar. */
function command(place: string, blob: string, diffId: string, output: string): string[] {
	return ["convert", "--diff-id", diffId, "--input", blob, "--output", join(place, output), "--staging", join(place, "staging")];
}

function convert(place: string, blob: string, diffId: string, output = "layer"): { readonly file: string; readonly layer: Description } {
	const { layer } = JSON.parse(execFileSync(PROGRAM, command(place, blob, diffId, output), { encoding: "utf8" })) as { layer: Description };
	return { file: join(place, output), layer };
}

/** Converts an archive that was just made. */
function converted(place: string, archive: Buffer): { readonly file: string; readonly layer: Description } {
	writeFileSync(join(place, "blob"), archive);
	return convert(place, join(place, "blob"), digestOf(archive));
}

/** What is wrong with an archive. */
function refusal(place: string, archive: Buffer, diffId = digestOf(archive)): string {
	writeFileSync(join(place, "blob"), archive);
	const { status, stderr } = spawnSync(PROGRAM, command(place, join(place, "blob"), diffId, "refused"), { encoding: "utf8" });
	if (status !== 3) throw new Error(`exit status ${status}: ${stderr}`);
	return stderr;
}

const listing = (root: string): Record<string, unknown> =>
	JSON.parse(execFileSync("python3", [TREE, "list", root], { encoding: "utf8", maxBuffer: 1 << 28 })) as Record<string, unknown>;

/** Mounts the image of a layer file and hands it to `look`. */
function mounted<T>(file: string, look: (root: string) => T): T {
	const root = mkdtempSync(join(tmpdir(), "snp-"));
	execFileSync("mount", ["-t", "erofs", "-o", "loop,ro", file, root]);
	try {
		return look(root);
	} finally {
		execFileSync("umount", [root]);
		rmSync(root, { recursive: true });
	}
}

/** The root hash as cryptsetup has it. */
function verify(file: string, { dataBytes, rootHash }: Description): void {
	const where = [`--hash-offset=${dataBytes}`, `--data-blocks=${dataBytes / BLOCK}`];
	execFileSync("veritysetup", ["verify", file, file, rootHash, "--no-superblock", ...where, `--salt=${ZERO_SALT}`, "--hash=sha256"]);
}

/** A header and contents of ustar's form with any type and name; `fields` overwrite what lies at their offsets before the checksum. */
function raw(name: string, type: string, data = Buffer.alloc(0), fields: Readonly<Record<number, Buffer | string>> = {}): Buffer {
	const header = Buffer.alloc(512);
	header.write(name, 0, "latin1");
	header.write("0000644\0", 100);
	header.write(`${data.length.toString(8).padStart(11, "0")}\0`, 124);
	header.write(type, 156, "latin1");
	header.write("ustar\x0000", 257, "latin1");
	for (const [offset, value] of Object.entries(fields)) Buffer.from(value as string, "latin1").copy(header, Number(offset));
	header.fill(0x20, 148, 156);
	const sum = header.reduce((all, byte) => all + byte, 0);
	header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
	return Buffer.concat([header, data, Buffer.alloc((512 - (data.length % 512)) % 512)]);
}

const end = Buffer.alloc(1024);
const pax = (...records: readonly string[]): Buffer => {
	const lines = records.map((record) => {
		const bare = Buffer.byteLength(record, "latin1") + 2;
		const length = [1, 2, 3, 4, 5, 6].map((digits) => bare + digits).find((total) => String(total).length === total - bare) ?? 0;
		return `${length} ${record}\n`;
	});
	return raw("pax", "x", Buffer.from(lines.join(""), "latin1"));
};

t.test("random trees: as tar unpacks them, the same bytes from tar, gzip and zstd, hashes as cryptsetup computes them", (t) => {
	for (const [seed, format] of [
		[1, "pax"],
		[2, "gnu"],
		[3, "pax"],
	] as const) {
		const place = folder(t);
		const [source, unpacked, blob] = ["source", "unpacked", "blob.tar"].map((name) => join(place, name)) as [string, string, string];
		mkdirSync(source);
		mkdirSync(unpacked);
		execFileSync("python3", [TREE, "make", String(seed), source]);
		const attributes = format === "pax" ? ["--xattrs", "--xattrs-include=*"] : [];
		execFileSync("tar", ["--create", `--format=${format}`, "--sparse", ...attributes, "--file", blob, "-C", source, "."]);
		execFileSync("tar", ["--extract", "--warning=no-timestamp", "--same-permissions", ...attributes, "--file", blob, "-C", unpacked]);
		execFileSync("gzip", ["--keep", "-1", blob]);
		execFileSync("zstd", ["--quiet", "--keep", blob]);
		const diffId = digestOf(readFileSync(blob));
		const elsewhere = folder(t);
		const { file, layer } = convert(place, blob, diffId);
		const bytes = readFileSync(file);
		t.ok(bytes.equals(readFileSync(convert(elsewhere, `${blob}.gz`, diffId, "a").file)), `seed ${seed}: gzip gives the same`);
		t.ok(bytes.equals(readFileSync(convert(elsewhere, `${blob}.zst`, diffId, "b").file)), `seed ${seed}: zstd gives the same`);
		verify(file, layer);
		execFileSync("fsck.erofs", [file], { stdio: "ignore" });
		const found = mounted(file, listing);
		t.strictSame(found, listing(unpacked), `seed ${seed}: the image has what tar unpacks`);
	}
	t.end();
});

t.test("a layer's root hash is that of earlier versions: policies name it", (t) => {
	const text = Buffer.from("text");
	const archive = Buffer.concat([
		raw("./", "5"),
		raw("d/", "5", undefined, { 100: "0001777\0" }),
		raw("d/empty", "0"),
		raw("d/small", "0", text, { 100: "0004755\0" }),
		raw("d/large", "0", Buffer.alloc(20_000, "large")),
		raw("d/hard", "1", undefined, { 157: "d/large" }),
		raw("link", "2", undefined, { 157: "d/large" }),
		raw("device", "3", undefined, { 329: "0000001\0", 337: "0000003\0" }),
		raw("fifo", "6"),
		pax("SCHILY.xattr.user.b=2", "SCHILY.xattr.user.a=1", "mtime=-1.5", "uid=70000"),
		raw("attributes", "0", text),
		pax("GNU.sparse.size=5000000", "GNU.sparse.map=4096,4"),
		raw("sparse", "0", text),
		raw("d/.wh.gone", "0"),
		raw("o/", "5"),
		raw("o/.wh..wh..opq", "0"),
		...Array.from({ length: 300 }, (_, index) => raw(`implied/f\xff${index}`, "0", Buffer.alloc(index * 20, "x"))),
		end,
	]);
	const { layer } = converted(folder(t), archive);
	t.equal(
		layer.rootHash,
		"a053e24a70e2a8f08d4be6afcd93fd31acd61f600e3ee416a0851c4c976e9a6a",
		"another hash needs another format of layer files (docs/contracts.md)",
	);
	t.end();
});

t.test("deletions: as overlayfs knows them, and what the layer has itself stays", (t) => {
	const place = folder(t);
	const text = Buffer.from("x");
	const members: Member[] = [
		{ kind: "file", path: "a/.wh.gone", data: Buffer.alloc(0) },
		{ kind: "file", path: "b/.wh..wh..opq", data: Buffer.alloc(0) },
		{ kind: "file", path: "c/kept", data: text },
		{ kind: "file", path: "c/.wh.kept", data: Buffer.alloc(0) },
		{ kind: "file", path: "d/.wh.folder", data: Buffer.alloc(0) },
		{ kind: "file", path: "d/folder/new", data: text },
		{ kind: "file", path: ".wh..wh.plnk/1", data: text },
	];
	const { file, layer } = converted(place, tar(members));
	t.equal(layer.implicit, 6, "the root and five folders are not in the archive");
	const found = mounted(file, listing);
	const at = (path: string) => found[Buffer.from(path).toString("hex")];
	t.match(at("a/gone"), { mode: "0o20000", device: 0 });
	t.strictSame((at("b") as { xattrs: unknown }).xattrs, { "trusted.overlay.opaque": "79" });
	t.match(at("c/kept"), { size: 1 });
	t.strictSame((at("d/folder") as { xattrs: unknown }).xattrs, { "trusted.overlay.opaque": "79" });
	t.notOk(at(".wh..wh.plnk"));
	t.end();
});

t.test("names lead nowhere but into the layer; later entries replace earlier ones; attributes of the host's overlay are left out", (t) => {
	const place = folder(t);
	const text = Buffer.from("text");
	const archive = Buffer.concat([
		raw("lib", "2", undefined, { 157: "/usr/lib" }),
		raw("lib/through", "0", text),
		raw("up", "2", undefined, { 157: "../../.." }),
		raw("up/rooted", "0", text),
		raw("../../outside", "0", text),
		raw("twice", "0", text),
		raw("twice/", "5"),
		pax("SCHILY.xattr.trusted.overlay.redirect=/etc", "SCHILY.xattr.user.kept=yes", `path=${"n".repeat(255)}`),
		raw("short", "0", text),
		end,
	]);
	const names = mounted(converted(place, archive).file, (root) => [
		...readdirSync(root).sort(),
		...readdirSync(join(root, "usr/lib")),
		...Object.keys(listing(root)).filter((path) => JSON.stringify(listing(root)[path]).includes("user.kept")),
	]);
	const long = "n".repeat(255);
	t.strictSame(names, ["lib", long, "outside", "rooted", "twice", "up", "usr", "through", Buffer.from(long).toString("hex")]);
	t.end();
});

t.test("names and targets are those that containerd takes: GNU's long ones before pax records, and an empty one is none", (t) => {
	const place = folder(t);
	const text = Buffer.from("text");
	const long = (type: string, name: string): Buffer => raw("././@LongLink", type, Buffer.from(`${name}\0`));
	const archive = Buffer.concat([
		pax("path=of-pax", "linkpath=of-pax"),
		long("L", "of-gnu"),
		long("K", "target-of-gnu"),
		raw("bare", "2", undefined, { 157: "target" }),
		long("L", ""),
		pax("path=of-pax"),
		raw("bare", "0", text),
		end,
	]);
	const found = mounted(converted(place, archive).file, (root) => [...readdirSync(root).sort(), readlinkSync(join(root, "of-gnu"))]);
	t.strictSame(found, ["of-gnu", "of-pax", "target-of-gnu"]);
	t.end();
});

t.test("hostile archives are refused, and the entry is named", (t) => {
	const place = folder(t);
	const text = Buffer.from("text");
	const cases: readonly (readonly [string, Buffer, RegExp])[] = [
		["a hard link out of the layer", Buffer.concat([raw("evil", "1", undefined, { 157: "etc/shadow" }), end]), /"evil".*not in this layer/],
		["a loop of links", Buffer.concat([raw("loop", "2", undefined, { 157: "loop" }), raw("loop/x", "0", text), end]), /"loop\/x".*links/],
		["a file as a folder", Buffer.concat([raw("f", "0", text), raw("f/x", "0", text), end]), /"f\/x".*no folder/],
		["an unknown type", Buffer.concat([raw("odd", "Z"), end]), /"odd".*type 'Z'/],
		["a long name", Buffer.concat([pax(`path=${"x".repeat(256)}`), raw("s", "0", text), end]), /longer than 255/],
		["a name with a NUL", Buffer.concat([pax("path=a\0b"), raw("s", "0", text), end]), /entry 1 .*path/],
		["contents that end early", raw("cut", "0", Buffer.alloc(5000)).subarray(0, 2000), /entry 1 .*ends within/],
		["a size that lies", raw("big", "0", text, { 124: "77777777777\0" }), /entry 1 .*ends within/],
		["a negative size", Buffer.concat([raw("neg", "0", text, { 124: Buffer.alloc(12, 0xff) }), end]), /size/],
		["a damaged header", Buffer.concat([raw("ok", "0", text), Buffer.alloc(512, 7), end]), /entry 2 .*no valid header/],
		["an owner out of range", Buffer.concat([pax("uid=4294967296"), raw("own", "0", text), end]), /"own".*owner/],
		[
			"holes out of order",
			Buffer.concat([pax("GNU.sparse.size=9", "GNU.sparse.map=5,2,0,2"), raw("holes", "0", text), end]),
			/"holes".*order/,
		],
		[
			"holes out of the file",
			Buffer.concat([pax("GNU.sparse.size=3", "GNU.sparse.map=0,4"), raw("holes", "0", text), end]),
			/"holes".*out of/,
		],
		[
			"a huge sparse file",
			Buffer.concat([pax("GNU.sparse.size=9223372036854775807", "GNU.sparse.map=0,4"), raw("huge", "0", text), end]),
			/"huge".*larger/,
		],
		[
			"more holes than memory",
			Buffer.concat([
				...Array.from({ length: 80 }, () => [pax("GNU.sparse.size=4294967296", "GNU.sparse.map=0,4"), raw("h", "0", text)]).flat(),
				end,
			]),
			/"h".*sparse files are too many/,
		],
		["huge records", Buffer.concat([raw("pax", "x", Buffer.alloc(1 << 21, 65)), end]), /records take/],
		["the deletion of everything", Buffer.concat([raw(".wh..wh..opq", "0"), end]), /opq".*lower layers/],
		["the deletion of nothing", Buffer.concat([raw("a/.wh...", "0"), end]), /wh\.\.\.".*deletes no name/],
		["a root that is no folder", Buffer.concat([raw("./", "0", text), end]), /root/],
	];
	for (const [name, archive, message] of cases) t.match(refusal(place, archive), message, name);
	const sound = Buffer.concat([raw("ok", "0", text), end]);
	t.match(refusal(place, sound, digestOf(text)), /the uncompressed layer has the digest/, "another layer than was expected");
	t.match(refusal(place, Buffer.concat([Buffer.from([0x1f, 0x8b]), text])), /can't be decompressed/, "damaged gzip");
	t.strictSame(readdirSync(place).sort(), ["blob", "staging"], "nothing is left");
	t.end();
});

t.test("a converter that is killed at any instant leaves a whole file or none", async (t) => {
	const place = folder(t);
	const members: Member[] = Array.from({ length: 40 }, (_, index) => ({
		kind: "file",
		path: `f${index}`,
		data: Buffer.alloc(200_000, index + 1),
	}));
	const archive = tar(members);
	const blob = join(place, "blob");
	writeFileSync(blob, archive);
	const diffId = digestOf(archive);
	const whole = readFileSync(convert(place, blob, diffId, "whole").file);
	const random = randomSource(42);
	const made = { whole: 0, none: 0 };
	for (let round = 0; round < 50; round++) {
		const bytes = random(Math.floor(archive.length * 1.2));
		// The blob comes through a pipe, so that the instant is counted in bytes and not in time.
		const args = command(place, "-", diffId, "layer");
		const child = spawn(PROGRAM, args, { stdio: ["pipe", "ignore", "ignore"] });
		const closed = once(child, "close");
		child.stdin.on("error", () => undefined);
		await new Promise<void>((resolve) => child.stdin.write(archive.subarray(0, bytes), () => resolve()));
		// With all of the blob it is killed while it writes the rest and gives the file its name, or not at all.
		const kill = (): boolean => child.kill("SIGKILL");
		const timer = bytes >= archive.length && round % 2 === 1 ? setTimeout(kill, random(60)) : undefined;
		if (bytes >= archive.length) child.stdin.end();
		else kill();
		await closed;
		clearTimeout(timer);
		const found = readdirSync(place).includes("layer") ? readFileSync(join(place, "layer")) : undefined;
		made[found === undefined ? "none" : "whole"] += 1;
		if (found !== undefined) {
			if (!found.equals(whole)) t.fail(`round ${round}: half a file`);
			rmSync(join(place, "layer"));
		}
	}
	t.ok(made.whole > 0 && made.none > 0, `some came through, and some did not: ${JSON.stringify(made)}`);
	t.notOk(
		readdirSync(join(place, "staging")).some((name) => !name.endsWith(".lock")),
		"nothing unfinished is left",
	);
	t.ok(readFileSync(convert(place, blob, diffId).file).equals(whole), "the next one makes it");
});

t.test("a maker of disks that is killed at any instant leaves a whole disk or none", async (t) => {
	const place = folder(t);
	const archive = tar([{ kind: "file", path: "f", data: Buffer.alloc(24_000_000, 7) }]);
	writeFileSync(join(place, "blob"), archive);
	const { file } = convert(place, join(place, "blob"), digestOf(archive), "one.layer");
	const order = JSON.stringify({ layers: [{ layer: file }, { layer: file }] });
	const start = (output: string): { readonly closed: Promise<unknown>; readonly kill: () => void } => {
		const child = spawn(PROGRAM, ["disk", "--output", join(place, output), "--staging", join(place, "staging")], {
			stdio: ["pipe", "ignore", "ignore"],
		});
		child.stdin.on("error", () => undefined).end(order);
		return { closed: once(child, "close"), kill: () => child.kill("SIGKILL") };
	};
	const began = performance.now();
	await start("whole").closed;
	const wholeMs = performance.now() - began;
	const whole = readFileSync(join(place, "whole"));
	const random = randomSource(43);
	const made = { whole: 0, none: 0 };
	for (let round = 0; round < 50; round++) {
		const { closed, kill } = start("disk");
		// From the first moment to a little after its end.
		const timer = setTimeout(kill, (wholeMs * random(1_200)) / 1_000);
		await closed;
		clearTimeout(timer);
		const found = existsSync(join(place, "disk"));
		made[found ? "whole" : "none"] += 1;
		if (found && !readFileSync(join(place, "disk")).equals(whole)) t.fail(`round ${round}: half a disk`);
		rmSync(join(place, "disk"), { force: true });
	}
	t.ok(made.none > 0, `some were killed before they had finished: ${JSON.stringify(made)}`);
	t.notOk(
		readdirSync(join(place, "staging")).some((name) => !name.endsWith(".lock")),
		"nothing unfinished is left",
	);
	await start("disk").closed;
	t.ok(readFileSync(join(place, "disk")).equals(whole), "the next one makes it");
});

t.test("many that want one layer at the same moment get one file", async (t) => {
	const place = folder(t);
	const archive = tar([{ kind: "file", path: "f", data: Buffer.alloc(3_000_000, 1) }]);
	writeFileSync(join(place, "blob"), archive);
	const args = command(place, join(place, "blob"), digestOf(archive), "layer");
	const answers = await Promise.all(
		Array.from({ length: 6 }, async () => {
			const child = spawn(PROGRAM, args, { stdio: ["ignore", "pipe", "inherit"] });
			let text = "";
			child.stdout.setEncoding("utf8").on("data", (part: string) => (text += part));
			await once(child, "close");
			return JSON.parse(text) as { cached: boolean };
		}),
	);
	t.equal(answers.filter(({ cached }) => !cached).length, 1, "one was made, and the others found it");
});

t.test(
	"a disk of layers: partitions as the kernel's tools read them, the same for every order of making, every byte accounted for",
	(t) => {
		const place = folder(t);
		const layers = ["one", "two", "three"].map((name) => {
			const archive = tar([{ kind: "file", path: name, data: Buffer.from(name.repeat(3000)) }]);
			writeFileSync(join(place, name), archive);
			return convert(place, join(place, name), digestOf(archive), `${name}.layer`);
		});
		const order = JSON.stringify({ layers: layers.map(({ file }) => ({ layer: file })) });
		const assemble = (output: string): Buffer => {
			execFileSync(PROGRAM, ["disk", "--output", join(place, output), "--staging", join(place, "staging")], { input: order });
			return readFileSync(join(place, output));
		};
		const disk = assemble("disk");
		t.ok(disk.equals(assemble("again")));
		const columns = ["--noheadings", "--raw", "--output", "START,SECTORS,TYPE"];
		const table = execFileSync("partx", [...columns, join(place, "disk")], { encoding: "utf8" })
			.trim()
			.split("\n");
		const partitions = table.map((line) => {
			const [start = "", size = "", type = ""] = line.split(" ");
			return { start: Number(start), size: Number(size), type };
		});
		t.equal(partitions.length, 3);
		for (const [index, { start, size, type }] of partitions.entries()) {
			const made = layers[index];
			if (made === undefined) throw new Error("a partition without a layer");
			const { file, layer } = made;
			t.equal(type, "0fc63daf-8483-4772-8e79-3d69d8477de4");
			const bytes = disk.subarray(start * 512, (start + size) * 512);
			t.ok(bytes.equals(readFileSync(file).subarray(0, layer.dataBytes + layer.treeBytes)), `partition ${index + 1} is layer ${index + 1}`);
		}
		execFileSync(PROGRAM, ["verify", join(place, "disk")]);
		// Where a change must be found: the tables, and each layer's image and tree.
		const places = [
			446,
			530,
			1030,
			disk.length - 5,
			disk.length - 600,
			...partitions.flatMap(({ start, size }) => [start * 512 + 1030, (start + size) * 512 - 4000]),
		];
		for (const at of places) {
			const changed = Buffer.from(disk);
			changed[at] = (changed[at] ?? 0) ^ 1;
			writeFileSync(join(place, "changed"), changed);
			t.equal(spawnSync(PROGRAM, ["verify", join(place, "changed")], { stdio: "ignore" }).status, 3, `a change at byte ${at} is found`);
		}
		for (const bytes of [Buffer.concat([disk, Buffer.alloc(4096)]), disk.subarray(0, disk.length - 4096), disk.subarray(0, 40_000)]) {
			writeFileSync(join(place, "changed"), bytes);
			t.equal(
				spawnSync(PROGRAM, ["verify", join(place, "changed")], { stdio: "ignore" }).status,
				3,
				`${bytes.length} bytes are no such disk`,
			);
		}
		t.end();
	},
);
