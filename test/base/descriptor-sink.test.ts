/** A log's descriptor that refuses: a full tmpfs. Needs root. */

import { closeSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { mount, unmount } from "../../native/src/mount.ts";
import { descriptorSink } from "../../shim/base/descriptor-sink.ts";

const PAGE_BYTES = 4096;

/** Fills a file system to its last page. */
function fill(file: string): void {
	try {
		for (;;) writeFileSync(file, Buffer.alloc(PAGE_BYTES), { flag: "a" });
	} catch {
		// Full.
	}
}

t.test("lines that can't be written are counted, and the count is told with the next that can", async (t) => {
	const place = t.testdir({});
	await mount("tmpfs", place, "tmpfs", 0, "size=64k");
	const file = join(place, "log");
	const fd = openSync(file, "a");
	try {
		const sink = descriptorSink(fd);
		sink('{"n":1}\n');
		fill(join(place, "filler"));
		const long = `{"long":"${"x".repeat(PAGE_BYTES)}"}\n`;
		for (let round = 0; round < 3; round++) sink(long);
		rmSync(join(place, "filler"));
		sink('{"n":2}\n');
		sink('{"n":3}\n');
		const lines = readFileSync(file, "utf8").trimEnd().split("\n");
		t.equal(lines.length, 5);
		t.ok(long.startsWith(lines[1] ?? "?"), "what was written of the first lost line");
		t.match(JSON.parse(lines[2] ?? ""), { level: "warn", lines: 3, reason: /ENOSPC/ });
		t.match(
			[0, 3, 4].map((index) => JSON.parse(lines[index] ?? "") as unknown),
			[{ n: 1 }, { n: 2 }, { n: 3 }],
		);
	} finally {
		closeSync(fd);
		await unmount(place, 0);
	}
});

t.test("a descriptor that is closed is no reason to fail either", (t) => {
	const fd = openSync("/dev/null", "a");
	closeSync(fd);
	t.doesNotThrow(() => descriptorSink(fd)("line\n"));
	t.end();
});

t.test("a log that lives long is kept small, and its end stays whole", (t) => {
	const file = join(t.testdir({}), "log");
	const fd = openSync(file, "a");
	const sink = descriptorSink(fd);
	const lines = 3000;
	for (let n = 1; n <= lines; n++) sink(`${JSON.stringify({ n, text: "x".repeat(1000) })}\n`);
	closeSync(fd);
	const kept = readFileSync(file, "utf8").trimEnd().split("\n");
	const numbers = kept.map((line) => (JSON.parse(line) as { n: number }).n);
	t.strictSame(
		numbers,
		numbers.map((_, index) => lines - numbers.length + 1 + index),
		"the last lines, in their order",
	);
	t.ok(numbers.length >= 200 && numbers.length < 1200, `${numbers.length} lines are kept`);
	t.end();
});
