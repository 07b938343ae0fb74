import { once } from "node:events";
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import net from "node:net";
import type { Socket } from "node:net";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { decodeRequest, encodeFrame, encodeResponse, FrameReader, FrameType } from "../../shim/wire/frame.ts";
import { Outbox } from "../../shim/wire/outbox.ts";
import { EventPublishers } from "../../shim/wire/publisher.ts";
import type { ContainerdEvent } from "../../shim/wire/publisher.ts";
import { mount, unmount } from "../../native/src/mount.ts";
import { eventually } from "../support/retry.ts";
import { memoryLog, shortFolder } from "./support.ts";

const WAIT_MS = 20_000;

/** A containerd that takes every event; what it has got is the texts of their values. */
async function containerd(t: Test, path: string): Promise<string[]> {
	const got: string[] = [];
	const sockets = new Set<Socket>();
	const server = net.createServer((socket) => {
		sockets.add(socket);
		const reader = new FrameReader("call.invalid");
		socket.on("error", () => undefined);
		socket.on("data", (chunk: Buffer) => {
			for (const frame of reader.push(chunk)) {
				got.push(
					...(Buffer.from(decodeRequest(frame.data).payload)
						.toString("latin1")
						.match(/value \d+/g) ?? []),
				);
				const answer = encodeResponse({ code: 0, message: "", payload: new Uint8Array(0) });
				socket.write(encodeFrame(FrameType.response, frame.streamId, answer));
			}
		});
	});
	server.listen(path);
	await once(server, "listening");
	t.teardown(() => {
		for (const socket of sockets) socket.destroy();
		server.close();
	});
	return got;
}

function event(n: number): ContainerdEvent {
	return { namespace: "k8s.io", topic: "/tasks/exit", typeUrl: "containerd.events.TaskExit", value: Buffer.from(`value ${n}`) };
}

/** One snpd's outbox in a folder. */
function outbox(t: Test, folder: string): { outbox: Outbox; publishers: EventPublishers; lines: string[] } {
	const { log, lines } = memoryLog();
	const publishers = new EventPublishers(log);
	t.teardown(() => publishers.close());
	return { outbox: new Outbox(folder, publishers, log), publishers, lines };
}

const target = (path: string) => ({ ttrpcAddress: path, address: "/run/containerd.sock", publishBinary: "/usr/bin/containerd" });

t.test("an event is on disk until containerd has it", async (t) => {
	const place = shortFolder(t);
	const folder = join(place, "e");
	const { outbox: first } = outbox(t, folder);
	first.resume();
	t.notOk(existsSync(folder), "nothing is made before there is something to write");
	first.publish(target(join(place, "c")), event(1));
	t.equal(readdirSync(folder).length, 1);
	const got = await containerd(t, join(place, "c"));
	await eventually("an empty folder", WAIT_MS, () => (readdirSync(folder).length === 0 ? true : undefined));
	t.same(got, ["value 1"]);
});

t.test("what one snpd could not send, the next one sends, before its own events and in order", async (t) => {
	const place = shortFolder(t);
	const folder = join(place, "e");
	const path = join(place, "c");
	const dead = outbox(t, folder);
	for (let n = 1; n <= 12; n++) dead.outbox.publish(target(path), event(n));
	// An end by SIGTERM leaves them as kill -9 does.
	dead.outbox.close();
	await dead.publishers.close();
	t.equal(readdirSync(folder).length, 12);
	const got = await containerd(t, path);
	const next = outbox(t, folder);
	next.outbox.resume();
	next.outbox.publish(target(path), event(13));
	await eventually("an empty folder", WAIT_MS, () => (readdirSync(folder).length === 0 ? true : undefined));
	t.same(
		got,
		Array.from({ length: 13 }, (_, index) => `value ${index + 1}`),
	);
});

t.test("a damaged file is told and removed, and keeps nothing else back", async (t) => {
	const place = shortFolder(t);
	const folder = join(place, "e");
	const path = join(place, "c");
	const dead = outbox(t, folder);
	dead.outbox.publish(target(path), event(1));
	dead.outbox.close();
	await dead.publishers.close();
	for (const [name, text] of Object.entries({
		"0000000000000000.json": "{",
		"0000000000000007.json": '{"value":1}',
		"0000000000000008.json.next": "",
		x: "",
	}))
		writeFileSync(join(folder, name), text);
	const got = await containerd(t, path);
	const { outbox: next, lines } = outbox(t, folder);
	next.resume();
	await eventually("an empty folder", WAIT_MS, () => (readdirSync(folder).length === 0 ? true : undefined));
	t.same(got, ["value 1"]);
	t.equal(lines.join("").match(/its file is damaged/g)?.length, 2);
});

t.test("a full file system keeps no event from containerd", async (t) => {
	const place = shortFolder(t);
	const folder = join(place, "e");
	mkdirSync(folder);
	await mount("tmpfs", folder, "tmpfs", 0, "size=4k");
	try {
		writeFileSync(join(folder, "x"), Buffer.alloc(4096));
		const got = await containerd(t, join(place, "c"));
		const { outbox: full, lines } = outbox(t, folder);
		full.publish(target(join(place, "c")), event(1));
		await eventually("the event", WAIT_MS, () => got[0]);
		t.match(lines.join(""), /an event is lost if snpd ends before containerd takes it/);
		t.same(readdirSync(folder), ["x"]);
	} finally {
		await unmount(folder, 0);
	}
});
