import { once } from "node:events";
import { chmodSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import net from "node:net";
import type { Server, Socket } from "node:net";
import { join } from "node:path";
import protobuf from "protobufjs/minimal.js";
import t from "tap";
import type { Test } from "tap";
import { decodeRequest, encodeFrame, encodeResponse, FrameReader, FrameType } from "../../shim/wire/frame.ts";
import { EventPublisher, EventPublishers } from "../../shim/wire/publisher.ts";
import type { ContainerdEvent } from "../../shim/wire/publisher.ts";
import { memoryLog, shortFolder } from "./support.ts";

/** The fields of a protobuf message by number: numbers for varints, bytes for the rest. */
function fields(bytes: Uint8Array): Map<number, number | Uint8Array> {
	const reader = protobuf.Reader.create(bytes);
	const found = new Map<number, number | Uint8Array>();
	while (reader.pos < reader.len) {
		const tag = reader.uint32();
		found.set(tag >>> 3, (tag & 7) === 0 ? reader.uint32() : reader.bytes());
	}
	return found;
}

const bytesOf = (message: Map<number, number | Uint8Array>, field: number): Uint8Array => message.get(field) as Uint8Array;
const textOf = (message: Map<number, number | Uint8Array>, field: number): string => Buffer.from(bytesOf(message, field)).toString();

interface Forwarded {
	readonly namespace: string;
	readonly header: string | undefined;
	readonly topic: string;
	readonly typeUrl: string;
	readonly value: string;
	readonly seconds: number;
}

/** A containerd that takes events; `code` decides the status of each by its topic. */
async function containerd(
	t: Test,
	path: string,
	code: (topic: string) => number = () => 0,
): Promise<{ events: Forwarded[]; stop: () => Promise<void> }> {
	const events: Forwarded[] = [];
	const sockets = new Set<Socket>();
	const server: Server = net.createServer((socket) => {
		sockets.add(socket);
		const reader = new FrameReader("call.invalid");
		socket.on("error", () => undefined);
		socket.on("data", (chunk: Buffer) => {
			for (const frame of reader.push(chunk)) {
				const request = decodeRequest(frame.data);
				const envelope = fields(bytesOf(fields(request.payload), 1));
				const any = fields(bytesOf(envelope, 4));
				const topic = textOf(envelope, 3);
				events.push({
					namespace: textOf(envelope, 2),
					header: request.metadata?.["containerd-namespace-ttrpc"],
					topic,
					typeUrl: textOf(any, 1),
					value: textOf(any, 2),
					seconds: fields(bytesOf(envelope, 1)).get(1) as number,
				});
				socket.write(
					encodeFrame(
						FrameType.response,
						frame.streamId,
						encodeResponse({ code: code(topic), message: "refused", payload: new Uint8Array(0) }),
					),
				);
			}
		});
	});
	server.listen(path);
	await once(server, "listening");
	const stop = async (): Promise<void> => {
		for (const socket of sockets) socket.destroy();
		if (!server.listening) return;
		await new Promise((resolve) => server.close(resolve));
	};
	t.teardown(stop);
	return { events, stop };
}

function event(topic: string, value = "v"): ContainerdEvent {
	return { namespace: "k8s.io", topic, typeUrl: "containerd.events.TaskExit", value: Buffer.from(value) };
}

const target = (path: string) => ({ ttrpcAddress: path, address: "/run/containerd.sock", publishBinary: "/usr/bin/containerd" });

t.test("EventPublisher.publish forwards events in order", async (t) => {
	const path = join(shortFolder(t), "c.ttrpc");
	const { events } = await containerd(t, path);
	const publisher = new EventPublisher(target(`unix://${path}`), memoryLog().log);
	t.teardown(() => publisher.close());
	const before = Math.floor(Date.now() / 1000);
	const outcomes = Array.from({ length: 100 }, (_, index) => publisher.publish(event(`/tasks/${index}`, `value ${index}`)));
	t.equal(publisher.queued, 100);
	t.ok((await Promise.all(outcomes)).every(Boolean));
	t.same(
		events.map(({ topic }) => topic),
		Array.from({ length: 100 }, (_, index) => `/tasks/${index}`),
	);
	t.match(events[99], { namespace: "k8s.io", header: "k8s.io", typeUrl: "containerd.events.TaskExit", value: "value 99" });
	t.ok((events[0]?.seconds ?? 0) >= before);
	t.equal(await publisher.flush(1000), true);
});

t.test("events wait while containerd is away and come in order after it is back", async (t) => {
	const path = join(shortFolder(t), "c.ttrpc");
	const publisher = new EventPublisher(target(path), memoryLog().log);
	t.teardown(() => publisher.close());
	const first = await containerd(t, path);
	t.equal(await publisher.publish(event("/1")), true);
	await first.stop();
	const outcomes = [publisher.publish(event("/2")), publisher.publish(event("/3"))];
	t.equal(await publisher.flush(1), false, "nobody takes them now");
	const second = await containerd(t, path);
	t.equal(await publisher.flush(30_000), true);
	t.same(await Promise.all(outcomes), [true, true]);
	t.same(
		second.events.map(({ topic }) => topic),
		["/2", "/3"],
	);
});

t.test("an event that containerd refuses again and again does not block the others", async (t) => {
	const path = join(shortFolder(t), "c.ttrpc");
	const { events } = await containerd(t, path, (topic) => (topic === "/bad" ? 3 : 0));
	const { log, lines } = memoryLog();
	const publisher = new EventPublisher(target(path), log);
	t.teardown(() => publisher.close());
	t.same(await Promise.all([publisher.publish(event("/bad")), publisher.publish(event("/good"))]), [false, true]);
	t.same(
		events.map(({ topic }) => topic),
		["/bad", "/bad", "/bad", "/good"],
	);
	t.match(lines.join(""), /an event is lost/);
});

t.test("the queue is bounded: the oldest event that is not on its way is dropped", async (t) => {
	const path = join(shortFolder(t), "c.ttrpc");
	const { log, lines } = memoryLog();
	const publisher = new EventPublisher(target(path), log);
	t.teardown(() => publisher.close());
	const outcomes = Array.from({ length: 4097 }, (_, index) => publisher.publish(event(`/${index}`)));
	t.equal(publisher.queued, 4096);
	t.equal(await outcomes[1], false);
	t.match(lines.join(""), /too many events wait/);
	await publisher.close();
	t.equal(await outcomes[0], false);
	t.equal(await publisher.publish(event("/after")), false);
	t.equal(publisher.queued, 0);
});

t.test("without a ttrpc address, the publish binary is run", async (t) => {
	const folder = shortFolder(t);
	const binary = join(folder, "containerd");
	writeFileSync(
		binary,
		`#!/bin/sh\nprintf '%s\\n' "$*" >> ${folder}/args\ncat >> ${folder}/stdin\ntest ! -e ${folder}/fail || { rm ${folder}/fail; echo 'no containerd' >&2; exit 3; }\n`,
	);
	chmodSync(binary, 0o755);
	writeFileSync(join(folder, "fail"), "");
	const { log, lines } = memoryLog();
	const publishers = new EventPublishers(log);
	t.teardown(() => publishers.close());
	const place = { ttrpcAddress: "", address: "/run/c.sock", publishBinary: binary };
	t.equal(publishers.for(place), publishers.for({ ...place }), "one queue for one containerd");
	t.equal(await publishers.for(place).publish(event("/tasks/exit", "body")), true);
	const args = "--address /run/c.sock publish --topic /tasks/exit --namespace k8s.io\n";
	t.equal(readFileSync(join(folder, "args"), "utf8"), args + args, "tried again after its failure");
	t.match(lines.join(""), /exit code 3: no containerd/);
	const any = fields(readFileSync(join(folder, "stdin")));
	t.equal(textOf(any, 1), "containerd.events.TaskExit");
	t.equal(textOf(any, 2), "body");
	t.equal(existsSync(join(folder, "fail")), false);
});

t.test("a publish binary that does not exist is told, and closing gives up", async (t) => {
	const { log, lines } = memoryLog();
	const publisher = new EventPublisher({ ttrpcAddress: "", address: "/run/c.sock", publishBinary: "/missing/containerd" }, log);
	const outcome = publisher.publish(event("/x"));
	t.equal(await publisher.flush(20), false);
	await publisher.close();
	t.equal(await outcome, false);
	t.match(lines.join(""), /ENOENT/);
});
