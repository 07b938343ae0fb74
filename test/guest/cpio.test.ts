import { execFileSync } from "node:child_process";
import { chmodSync, readFileSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { cpioArchive, type CpioEntry } from "../../guest/cpio.mjs";
import { repositoryDir } from "../support/paths.ts";

type Member = {
	readonly name: string;
	readonly mode: number;
	readonly nlink: number;
	readonly rdev: string;
	readonly owner: string;
	readonly mtime: number;
	readonly data: string;
};

/** Reads an archive back by the format's own rules: fixed header of 110 bytes, name and data padded to 4. */
function members(archive: Buffer): Member[] {
	const found: Member[] = [];
	for (let at = 0; ; ) {
		const field = (index: number): number => Number.parseInt(archive.toString("ascii", at + 6 + index * 8, at + 14 + index * 8), 16);
		if (archive.toString("ascii", at, at + 6) !== "070701") throw new Error(`no header at ${at}`);
		const nameEnd = at + 110 + field(11);
		const name = archive.toString("utf8", at + 110, nameEnd - 1);
		const dataStart = Math.ceil(nameEnd / 4) * 4;
		const data = archive.toString("utf8", dataStart, dataStart + field(6));
		if (name === "TRAILER!!!") return found;
		found.push({
			name,
			mode: field(1),
			nlink: field(4),
			rdev: `${field(9)}:${field(10)}`,
			owner: `${field(2)}:${field(3)}`,
			mtime: field(5),
			data,
		});
		at = Math.ceil((dataStart + field(6)) / 4) * 4;
	}
}

const tree: readonly CpioEntry[] = [
	{ kind: "file", name: "init", mode: 0o755, data: Buffer.from("hello") },
	{ kind: "char", name: "dev/console", mode: 0o600, major: 5, minor: 1 },
	{ kind: "dir", name: "dev", mode: 0o755 },
	{ kind: "link", name: "bin", target: "usr/bin" },
];

t.test("cpioArchive writes what can be read back, sorted, owned by root, without times", async (t) => {
	const plain = { owner: "0:0", mtime: 0, rdev: "0:0", nlink: 1, data: "" };
	t.strictSame(members(cpioArchive(tree)), [
		{ ...plain, name: "bin", mode: 0o120777, data: "usr/bin" },
		{ ...plain, name: "dev", mode: 0o040755, nlink: 2 },
		{ ...plain, name: "dev/console", mode: 0o020600, rdev: "5:1" },
		{ ...plain, name: "init", mode: 0o100755, data: "hello" },
	]);
});

t.test("cpioArchive gives equal bytes for equal entries in any order, in whole blocks", async (t) => {
	const archive = cpioArchive(tree);
	t.ok(archive.equals(cpioArchive([...tree].reverse())));
	t.equal(archive.length % 512, 0);
});

t.test("cpioArchive refuses names that the kernel would drop or misplace", async (t) => {
	const file = (name: string): CpioEntry => ({ kind: "file", name, mode: 0o644, data: Buffer.alloc(0) });
	for (const name of ["", "/init", "a/", "../a", "a//b", "./a", "TRAILER!!!"]) {
		t.throws(() => cpioArchive([file(name)]), { name: "RangeError" }, name);
	}
	t.throws(() => cpioArchive([file("a"), file("a")]), { message: /twice/ });
	t.throws(() => cpioArchive([file("etc/passwd")]), { message: /folder of 'etc\/passwd'/ });
	t.throws(() => cpioArchive([file("etc"), file("etc/passwd")]), { message: /folder of 'etc\/passwd'/ }, "a file is no folder");
});

t.test("make-initramfs gives equal bytes whatever the agent's times and permissions are", async (t) => {
	const dir = t.testdir({ agent: "program" });
	const make = (output: string): Buffer => {
		execFileSync(process.execPath, [join(repositoryDir, "guest/make-initramfs.mjs"), join(dir, "agent"), join(dir, output)]);
		return readFileSync(join(dir, output));
	};
	const first = make("first");
	chmodSync(join(dir, "agent"), 0o600);
	utimesSync(join(dir, "agent"), 1, 1);
	const second = make("second");
	t.ok(first.equals(second));
	writeFileSync(join(dir, "agent"), "another");
	t.notOk(first.equals(make("third")));
	t.match(
		members(first).map(({ name, mode }) => `${name} ${mode.toString(8)}`),
		["dev 40755", "dev/console 20600", "init 100755", "proc 40755", "run 40755", "sys 40755", "tmp 41777"],
	);
});
