import { closeSync, fstatSync, readSync } from "node:fs";
import t from "tap";
import { emulationParameters, openRoutingTable, routingTable } from "../../ch-qemu/emulation.ts";

t.test("what a guest with several processors needs stays", (t) => {
	t.equal(emulationParameters(5, 2), " tsc_early_khz=5");
	t.equal(emulationParameters(undefined, 2), "");
	t.end();
});

t.test("the table is an SSDT whose sum is 0, in a file that has no name any more", (t) => {
	const table = routingTable();
	t.equal(table.toString("latin1", 0, 4), "SSDT");
	t.equal(table.readUInt32LE(4), table.length);
	t.equal(table.reduce((sum, byte) => sum + byte, 0) & 0xff, 0);
	const links = table.toString("latin1").match(/_SB_LNK./g) ?? [];
	t.same(
		["A", "B", "C", "D", "S"].map((link) => links.filter((one) => one.endsWith(link)).length),
		[31, 32, 32, 32, 1],
	);
	t.match(table.toString("hex"), "0cffff02000a005c2e5f53425f4c4e4b42", "slot 2, first pin: LNKB");
	const fd = openRoutingTable();
	const read = Buffer.alloc(table.length + 1);
	t.equal(readSync(fd, read, 0, read.length, 0), table.length);
	t.equal(fstatSync(fd).nlink, 0);
	closeSync(fd);
	t.end();
});
