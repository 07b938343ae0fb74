/** The event monitor's stream. */

import { closeSync, constants, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { t } from "tap";

import { makeFifo } from "../../shim/host/filesystem.ts";
import { EventParser, readEvents } from "../../shim/vmm/events.ts";
import type { VmmEvent } from "../../shim/vmm/events.ts";
import { shortFolder } from "./tools.ts";

const pretty = (event: string, properties: unknown = null): string =>
	`${JSON.stringify({ timestamp: { secs: 1, nanos: 500_000 }, source: "vm", event, properties }, null, 2)}\n\n`;
const names = (events: readonly VmmEvent[]): string[] => events.map(({ event }) => event);

t.test("EventParser: however the stream is cut", async (t) => {
	const text = pretty("booting") + pretty("device-removed", { id: "d1", odd: '}\n{"' }) + '{"source":"vm","event":"booted"}\n';
	for (const size of [1, 2, 7, 64, text.length]) {
		const parser = new EventParser();
		const events: VmmEvent[] = [];
		for (let at = 0; at < text.length; at += size) events.push(...parser.push(text.slice(at, at + size)));
		t.same(names(events), ["booting", "device-removed", "booted"], `pieces of ${size}`);
		t.same(events[0], { timestampMs: 1000.5, source: "vm", event: "booting", properties: {} });
		t.same(events[1]?.properties, { id: "d1", odd: '}\n{"' });
	}
});

t.test("EventParser: finds its feet in the middle of a stream and after damage", async (t) => {
	const parser = new EventParser();
	const first = pretty("half", { a: "b" });
	t.same(names(parser.push(first.slice(first.indexOf("properties")))), []);
	t.same(names(parser.push(pretty("one"))), ["one"]);
	t.same(names(parser.push(`{\n  broken\n}\n{\n  "event": 5\n}\n${pretty("two")}`)), ["two"]);
	t.same(names(parser.push(`{\n${"x".repeat(200_000)}\n}\n${pretty("three")}`)), ["three"]);
	t.same(names(parser.push("y".repeat(200_000))), []);
	t.same(names(parser.push(`\n${pretty("four")}`)), ["four"]);
	t.same(names(parser.push(`{\n${'  "z",\n'.repeat(20_000)}`)), [], "an object without end is given up");
	t.same(names(parser.push(pretty("five"))), ["five"]);
});

t.test("readEvents: what was written while nobody read is delivered to the next reader, once", async (t) => {
	const fifo = join(shortFolder(t), "events");
	makeFifo(fifo, 0o600);
	const vmm = openSync(fifo, constants.O_RDWR | constants.O_NONBLOCK);
	t.teardown(() => closeSync(vmm));
	const read = async (count: number): Promise<{ seen: string[]; stop: () => void }> => {
		const seen: string[] = [];
		let enough: () => void = () => undefined;
		const got = new Promise<void>((resolve) => (enough = resolve));
		const stop = readEvents(fifo, ({ event }) => seen.push(event) === count && enough());
		// The stream does not keep the program alive by itself.
		const alive = setInterval(() => undefined, 1000);
		await got;
		clearInterval(alive);
		return { seen, stop };
	};
	writeSync(vmm, pretty("one") + pretty("two"));
	const first = await read(2);
	t.same(first.seen, ["one", "two"]);
	first.stop();
	writeSync(vmm, pretty("three"));
	const second = await read(1);
	t.same(second.seen, ["three"]);
	second.stop();
});
