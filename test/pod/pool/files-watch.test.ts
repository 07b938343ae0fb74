import { mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { FilesWatch } from "../../../shim/pod/pool/files-watch.ts";
import { eventually } from "../../support/retry.ts";

const WAIT_MS = 10_000;

/** A watch that counts what it tells. */
class Counting {
	readonly watch = new FilesWatch(() => void this.changes++);
	changes = 0;

	constructor(t: Test) {
		t.teardown(() => this.watch.close());
	}

	async noticed(what: string, changes: number): Promise<void> {
		await eventually(what, WAIT_MS, () => (this.changes === changes ? true : undefined));
	}
}

t.test("files that are written, replaced or made are noticed, and all in a folder that is watched whole", async (t) => {
	const folder = t.testdir({ "config.toml": "1" });
	const config = join(folder, "config.toml");
	const kernel = join(folder, "kernel");
	const dropIns = join(folder, "config.toml.d");
	const one = new Counting(t);
	const set = (): void => one.watch.set([config, kernel, dropIns], [dropIns]);
	set();
	writeFileSync(config, "2");
	await one.noticed("a file that is written", 1);
	writeFileSync(join(folder, "new"), "3");
	renameSync(join(folder, "new"), kernel);
	await one.noticed("a file that comes by a rename", 2);
	mkdirSync(dropIns);
	await one.noticed("a folder that is made", 3);
	set();
	writeFileSync(join(dropIns, "10-any.toml"), "");
	await one.noticed("a file in it", 4);
});

t.test(
	"a folder that is removed and made again is watched on, as is one that comes with the folders above it, and a link that is turned",
	async (t) => {
		const top = t.testdir({ guest: { kernel: "1" }, one: { image: "1" }, two: { image: "1" } });
		const [guest, later, link] = [join(top, "guest"), join(top, "a", "b", "c"), join(top, "link")];
		symlinkSync(join(top, "one"), link);
		const one = new Counting(t);
		one.watch.set([join(guest, "kernel"), join(later, "config.toml"), join(link, "image")]);
		rmSync(guest, { recursive: true });
		mkdirSync(guest);
		await one.noticed("the folder's end and its coming", 1);
		writeFileSync(join(guest, "kernel"), "2");
		await one.noticed("a file in the new one", 2);
		rmSync(guest, { recursive: true });
		await one.noticed("its end", 3);
		mkdirSync(guest);
		await one.noticed("its coming", 4);
		writeFileSync(join(guest, "kernel"), "3");
		await one.noticed("a file in it", 5);
		mkdirSync(join(top, "a"));
		await one.noticed("a folder above", 6);
		mkdirSync(later, { recursive: true });
		await one.noticed("the folders below", 7);
		writeFileSync(join(later, "config.toml"), "");
		await one.noticed("the file", 8);
		rmSync(link);
		symlinkSync(join(top, "two"), link);
		await one.noticed("the link", 9);
		writeFileSync(join(top, "two", "image"), "2");
		await one.noticed("a file behind it", 10);
	},
);

t.test("other files of the same folder are not noticed, and none after the end", async (t) => {
	const folder = t.testdir({ "config.toml": "1", other: "1" });
	const [one, other] = [new Counting(t), new Counting(t)];
	one.watch.set([join(folder, "config.toml")]);
	other.watch.set([join(folder, "other")]);
	writeFileSync(join(folder, "config.toml"), "2");
	await one.noticed("the file", 1);
	one.watch.close();
	writeFileSync(join(folder, "config.toml"), "3");
	writeFileSync(join(folder, "other"), "2");
	await other.noticed("the other file", 1);
	t.equal(one.changes, 1);
});
