import { spawn } from "node:child_process";
import { once } from "node:events";
import { renameSync } from "node:fs";
import net from "node:net";
import type { Socket } from "node:net";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { deferred } from "../../shim/base/deadline.ts";
import { ShimError } from "../../shim/base/errors.ts";
import { decodeFrame, decodeResponse, encodeFrame, encodeRequest, FrameType } from "../../shim/wire/frame.ts";
import { serveKeepers } from "../../shim/wire/keeper-server.ts";
import type { KeeperHandlers } from "../../shim/wire/keeper-server.ts";
import type { Keeper, KeeperRequest } from "../../shim/wire/keeper.ts";
import { encodeLink, encodeLinkJson, LinkKind, LinkReader } from "../../shim/wire/link.ts";
import type { LinkFrame } from "../../shim/wire/link.ts";
import { randomBytes, randomSource } from "../support/random.ts";
import { memoryLog, shortFolder } from "./support.ts";
import { failing } from "../base/failing.ts";

const HELLO = {
	version: 1,
	resumed: false,
	pid: 42,
	podKey: "0123456789abcdef0123456789abcdef",
	namespace: "default",
	podId: "pod-a",
	address: "/run/containerd/containerd.sock",
	ttrpcAddress: "/run/containerd/containerd.sock.ttrpc",
	publishBinary: "/usr/bin/containerd",
	configFile: null,
	socket: "/run/k.sock",
	bundle: "/bundle",
	channels: [] as number[],
	streams: [] as Record<string, unknown>[],
};

/** The keeper's end of a link, driven by hand. */
class FarKeeper {
	readonly socket: Socket;
	readonly #reader = new LinkReader();
	readonly #frames: LinkFrame[] = [];
	#wake: () => void = () => undefined;

	constructor(path: string) {
		this.socket = net.connect(path);
		this.socket.on("error", () => undefined);
		this.socket.on("data", (chunk: Buffer) => {
			this.#frames.push(...this.#reader.push(chunk));
			this.#wake();
		});
		this.socket.on("close", () => this.#wake());
	}

	async next(): Promise<LinkFrame> {
		for (;;) {
			const frame = this.#frames.shift();
			if (frame !== undefined) return frame;
			if (this.socket.destroyed) throw new Error("the link was closed");
			await new Promise<void>((resolve) => (this.#wake = resolve));
		}
	}

	hello(fields: Record<string, unknown> = {}): void {
		this.socket.write(encodeLinkJson(LinkKind.hello, 0, { ...HELLO, ...fields }));
	}

	request(kind: number, channel: number, streamId: number, method: string): void {
		const data = encodeRequest({ service: "svc", method, payload: Buffer.from(method), timeoutMs: 5000 });
		this.socket.write(encodeLink(kind, channel, encodeFrame(FrameType.request, streamId, data)));
	}

	async response(): Promise<{ channel: number; streamId: number; code: number; message: string; text: string }> {
		const { kind, channel, payload } = await this.next();
		if (kind !== LinkKind.frame) throw new Error(`kind ${kind}`);
		const { streamId, data } = decodeFrame(payload, "internal");
		const { code, message, payload: answer } = decodeResponse(data, "internal");
		return { channel, streamId, code, message, text: Buffer.from(answer).toString() };
	}
}

/** A server with handlers that record; each can be replaced. */
async function serve(t: Test, overrides: Partial<KeeperHandlers> = {}) {
	const { log, lines } = memoryLog();
	const path = join(shortFolder(t), "snpd.sock");
	const keepers: Keeper[] = [];
	const gone: Keeper[] = [];
	let onAttached: (keeper: Keeper) => void = () => undefined;
	let onGone: () => void = () => undefined;
	const handlers: KeeperHandlers = {
		attached: (keeper) => {
			keepers.push(keeper);
			onAttached(keeper);
		},
		request: async (_keeper, call) => ({ payload: Buffer.from(`${call.method} done`) }),
		gone: (keeper) => {
			gone.push(keeper);
			onGone();
		},
		control: async (request) => ({ echo: request }),
		...overrides,
	};
	const server = await serveKeepers(path, handlers, log);
	t.teardown(() => server.close());
	const connect = (): FarKeeper => {
		const far = new FarKeeper(path);
		t.teardown(() => far.socket.destroy());
		return far;
	};
	const attach = async (fields: Record<string, unknown> = {}): Promise<{ far: FarKeeper; keeper: Keeper }> => {
		const far = connect();
		const came = new Promise<Keeper>((resolve) => (onAttached = resolve));
		far.hello(fields);
		const keeper = await came;
		const answer = await far.next();
		t.equal(answer.kind, LinkKind.hello);
		t.same(JSON.parse(answer.payload.toString()), { version: 1, pid: process.pid });
		return { far, keeper };
	};
	const nextGone = (): Promise<void> => new Promise((resolve) => (onGone = resolve));
	return { server, path, connect, attach, keepers, gone, nextGone, lines };
}

t.test("serveKeepers answers the requests of a keeper", async (t) => {
	const calls: KeeperRequest[] = [];
	const { attach } = await serve(t, {
		request: async (_keeper, call) => {
			calls.push(call);
			return call.method === "Missing" ? { code: 5, message: "no such container" } : { payload: Buffer.from(`${call.method} done`) };
		},
	});
	const { far, keeper } = await attach();
	t.match(keeper.hello, { podId: "pod-a", pid: 42, configFile: null });
	far.socket.write(encodeLink(LinkKind.opened, 1));
	far.request(LinkKind.frame, 1, 1, "Create");
	far.request(LinkKind.frame, 1, 3, "Missing");
	t.same(await far.response(), { channel: 1, streamId: 1, code: 0, message: "", text: "Create done" });
	t.same(await far.response(), { channel: 1, streamId: 3, code: 5, message: "no such container", text: "" });
	t.match(calls, [
		{ channel: 1, streamId: 1, service: "svc", method: "Create", timeoutMs: 5000, replay: false },
		{ method: "Missing", replay: false },
	]);
	t.equal(keeper.unanswered, 0);
});

t.test("requests of a channel start in order, and answers go out when they are ready", async (t) => {
	const started: string[] = [];
	const slow = deferred<void>();
	const { attach } = await serve(t, {
		request: async (_keeper, call) => {
			started.push(call.method);
			if (call.method === "Slow") await slow.promise;
			return { payload: Buffer.from(call.method) };
		},
	});
	const { far } = await attach();
	far.socket.write(encodeLink(LinkKind.opened, 1));
	far.request(LinkKind.frame, 1, 1, "Slow");
	far.request(LinkKind.frame, 1, 3, "Quick");
	t.match(await far.response(), { streamId: 3, text: "Quick" });
	slow.resolve();
	t.match(await far.response(), { streamId: 1, text: "Slow" });
	t.same(started, ["Slow", "Quick"]);
});

t.test("a resumed keeper's replays wait until the pod was picked up, then come in order", async (t) => {
	const pickedUp = deferred<void>();
	const calls: string[] = [];
	const came = deferred<Keeper>();
	const { connect } = await serve(t, {
		attached: async (keeper) => {
			came.resolve(keeper);
			await keeper.stream(8)?.opened;
			await pickedUp.promise;
		},
		request: async (_keeper, { method, channel, replay }) => {
			calls.push(`${channel} ${method} ${replay}`);
			return { payload: Buffer.from(method) };
		},
	});
	const far = connect();
	const streams = [
		{ id: 7, state: "open", bytes: 10, hostPort: 99 },
		{ id: 8, state: "opening" },
		{ id: 9, state: "done", bytes: 5, hostPort: 100 },
		{ id: 10, state: "failed", error: "no route" },
	];
	far.hello({ resumed: true, channels: [3, 4], streams });
	far.request(LinkKind.replay, 3, 1, "Create");
	far.request(LinkKind.replay, 4, 1, "Wait");
	far.request(LinkKind.frame, 3, 3, "State");
	const keeper = await came.promise;
	t.same(await keeper.stream(7)?.opened, { hostPort: 99 });
	t.same(await keeper.stream(9)?.done, { bytes: 5 });
	await t.rejects(Promise.resolve(keeper.stream(10)?.done), failing({ reason: "stream.failed", message: /no route/ }));
	// Stream states are not held back: picking a pod up may need them.
	far.socket.write(encodeLinkJson(LinkKind.streamState, 8, { state: "open", hostPort: 101 }));
	t.same(await keeper.stream(8)?.opened, { hostPort: 101 });
	t.equal((await far.next()).kind, LinkKind.hello);
	t.same(calls, [], "no call before the pod is ready");
	pickedUp.resolve();
	t.match([await far.response(), await far.response(), await far.response()], [{ text: "Create" }, { text: "Wait" }, { text: "State" }]);
	t.same(calls, ["3 Create true", "4 Wait true", "3 State false"]);
});

t.test("frames for channels that are gone are dropped, and so are their answers", async (t) => {
	const gate = deferred<void>();
	const calls: string[] = [];
	const { attach } = await serve(t, {
		request: async (_keeper, { method }) => {
			calls.push(method);
			if (method === "Old") await gate.promise;
			return { payload: Buffer.from(method) };
		},
	});
	const { far, keeper } = await attach();
	far.socket.write(encodeLink(LinkKind.opened, 1));
	far.socket.write(encodeLink(LinkKind.opened, 2));
	far.request(LinkKind.frame, 1, 1, "Old");
	far.socket.write(encodeLink(LinkKind.closed, 1));
	far.request(LinkKind.frame, 1, 3, "Late");
	far.request(LinkKind.frame, 2, 1, "New");
	t.match(await far.response(), { channel: 2, text: "New" });
	gate.resolve();
	far.request(LinkKind.frame, 2, 3, "Last");
	t.match(await far.response(), { channel: 2, text: "Last" });
	t.same(calls, ["Old", "New", "Last"]);
	t.equal(keeper.unanswered, 0);
	keeper.closeChannel(2);
	t.match(await far.next(), { kind: LinkKind.closed, channel: 2 });
});

t.test("a malformed request is answered, not fatal", async (t) => {
	const { attach } = await serve(t);
	const { far } = await attach();
	far.socket.write(encodeLink(LinkKind.opened, 1));
	far.socket.write(encodeLink(LinkKind.frame, 1, encodeFrame(FrameType.request, 1, Buffer.from([0xff]))));
	t.match(await far.response(), { streamId: 1, code: 3 });
	const streaming = encodeFrame(FrameType.request, 3, encodeRequest({ service: "s", method: "m", payload: Buffer.alloc(0) }));
	streaming[9] = 2;
	far.socket.write(encodeLink(LinkKind.frame, 1, streaming));
	t.match(await far.response(), { streamId: 3, code: 12 });
});

t.test("a handler that throws is answered and logged", async (t) => {
	const { attach, lines } = await serve(t, {
		request: () => {
			throw new Error("defect");
		},
	});
	const { far } = await attach();
	far.socket.write(encodeLink(LinkKind.opened, 1));
	far.request(LinkKind.frame, 1, 1, "Create");
	t.match(await far.response(), { code: 2, message: "defect" });
	t.match(lines.join(""), /Create failed outside/);
});

t.test("an answer that no frame can hold becomes an error", async (t) => {
	const { attach } = await serve(t, { request: async () => ({ payload: new Uint8Array(5 * 1024 * 1024) }) });
	const { far } = await attach();
	far.socket.write(encodeLink(LinkKind.opened, 1));
	far.request(LinkKind.frame, 1, 1, "Stats");
	t.match(await far.response(), { code: 8 });
});

t.test("KeeperStream: open, done, close", async (t) => {
	const { attach } = await serve(t);
	const { far, keeper } = await attach();
	const open = { direction: "out", fifo: "/fifo", vsock: "/vsock.sock", port: 1028, token: "12" } as const;
	const stream = keeper.openStream({ id: 5, ...open });
	const frame = await far.next();
	t.match(frame, { kind: LinkKind.streamOpen, channel: 5 });
	t.same(JSON.parse(frame.payload.toString()), open);
	t.throws(() => keeper.openStream({ id: 5, ...open }), failing({ reason: "internal" }));

	far.socket.write(encodeLinkJson(LinkKind.streamState, 5, { state: "open", hostPort: 1073741824 }));
	t.same(await stream.opened, { hostPort: 1073741824 });
	stream.close("drain");
	const close = await far.next();
	t.match(close, { kind: LinkKind.streamClose, channel: 5 });
	t.same(JSON.parse(close.payload.toString()), { mode: "drain" });
	far.socket.write(encodeLinkJson(LinkKind.streamState, 5, { state: "done", bytes: 268435456, hostPort: 1073741824 }));
	t.same(await stream.done, { bytes: 268435456 });
	t.equal(keeper.stream(5), stream);
	stream.close("abort");
	t.match(await far.next(), { kind: LinkKind.streamClose, channel: 5 });
	t.equal(keeper.stream(5), undefined, "closing a finished stream forgets it");
});

t.test("KeeperStream fails with the keeper's own words", async (t) => {
	const { attach } = await serve(t);
	const { far, keeper } = await attach();
	const stream = keeper.openStream({ id: 1, direction: "in", fifo: "/f", vsock: "/v", port: 1028, token: "" });
	far.socket.write(encodeLinkJson(LinkKind.streamState, 1, { state: "failed", error: "connecting to /v: ENOENT" }));
	await t.rejects(
		stream.opened,
		failing({ reason: "stream.failed", message: "stdio stream 1 of pod pod-a failed: connecting to /v: ENOENT" }),
	);
	await t.rejects(stream.done, failing({ reason: "stream.failed" }));
});

t.test("the end of a link is told once, fails its streams, and drops answers", async (t) => {
	const gate = deferred<void>();
	const answered = deferred<void>();
	const { attach, gone, nextGone } = await serve(t, {
		request: async () => {
			await gate.promise;
			answered.resolve();
			return { payload: Buffer.alloc(1) };
		},
	});
	const { far, keeper } = await attach();
	far.socket.write(encodeLink(LinkKind.opened, 1));
	far.request(LinkKind.frame, 1, 1, "Wait");
	const stream = keeper.openStream({ id: 1, direction: "in", fifo: "/f", vsock: "/v", port: 1028, token: "" });
	await far.next();
	const end = nextGone();
	far.socket.destroy();
	await end;
	await keeper.closed;
	t.same(gone, [keeper]);
	t.equal(keeper.gone, true);
	await t.rejects(stream.done, failing({ reason: "stream.failed", message: /the keeper is gone/ }));
	t.throws(
		() => keeper.openStream({ id: 2, direction: "in", fifo: "/f", vsock: "/v", port: 1, token: "" }),
		failing({ reason: "stream.failed" }),
	);
	gate.resolve();
	await answered.promise;
	keeper.end();
});

t.test("a second link of the same pod replaces the first", async (t) => {
	const order: string[] = [];
	const { attach } = await serve(t, { gone: (keeper) => void order.push(`gone ${keeper.hello.pid}`) });
	const first = await attach({ pid: 1 });
	const second = await attach({ pid: 2, resumed: true });
	t.same(order, ["gone 1"]);
	t.equal(first.keeper.gone, true);
	second.keeper.end();
	t.match(await second.far.next(), { kind: LinkKind.end, channel: 0 });
});

t.test("a keeper ends when containerd has left it, or takes too long", async (t) => {
	const { attach } = await serve(t);
	const { far, keeper } = await attach({ channels: [1] });
	const end = far.next();
	keeper.endWhenLeft(60_000);
	far.request(LinkKind.frame, 1, 1, "State");
	t.equal((await end).kind, LinkKind.frame, "an answer still comes");
	far.socket.write(encodeLink(LinkKind.closed, 1));
	t.equal((await far.next()).kind, LinkKind.end);
	const second = await attach({ podKey: "b".repeat(32), channels: [] });
	second.keeper.endWhenLeft(60_000);
	t.equal((await second.far.next()).kind, LinkKind.end, "nobody is there");
	const third = await attach({ podKey: "c".repeat(32), channels: [1] });
	third.keeper.endWhenLeft(1);
	t.equal((await third.far.next()).kind, LinkKind.end, "time is over");
});

t.test("a keeper whose pod can't be taken on is cut off", async (t) => {
	const { connect, lines } = await serve(t, {
		attached: () => Promise.reject(new ShimError("journal.invalid", "the journal of pod-a is cut short")),
	});
	const far = connect();
	far.hello();
	await once(far.socket, "close");
	t.match(lines.join(""), /the journal of pod-a is cut short/);
});

t.test("the number of connections is told whenever it changes", async (t) => {
	const counts: number[] = [];
	let closed = (): void => undefined;
	const allClosed = new Promise<void>((resolve) => {
		closed = resolve;
	});
	const { connect } = await serve(t, {
		control: async () => ({}),
		connections: (count) => {
			counts.push(count);
			if (count === 0) closed();
		},
	});
	const clients = [connect(), connect()];
	for (const far of clients) {
		far.socket.write(encodeLinkJson(LinkKind.control, 1, {}));
		await far.next();
	}
	for (const far of clients) far.socket.end();
	await allClosed;
	t.same(counts, [1, 2, 1, 0]);
});

t.test("CONTROL is answered without HELLO, also to a client that has closed its sending side", async (t) => {
	const { connect } = await serve(t, {
		control: async (request) => {
			if ((request as { op?: string }).op === "fail") throw new ShimError("pod.not-found", "no pod x");
			return { echo: request };
		},
	});
	const far = connect();
	far.socket.write(encodeLinkJson(LinkKind.control, 7, { op: "delete", id: "x" }));
	const { kind, channel, payload } = await far.next();
	t.match({ kind, channel }, { kind: LinkKind.control, channel: 7 });
	t.same(JSON.parse(payload.toString()), { echo: { op: "delete", id: "x" } });
	far.socket.end(encodeLinkJson(LinkKind.control, 8, { op: "fail" }));
	const failed = await far.next();
	t.equal(failed.channel, 8);
	t.same(JSON.parse(failed.payload.toString()), { error: "no pod x (the pod is gone: nothing is left to do)" });
	await once(far.socket, "close");
});

t.test("whoever breaks the contract is cut off with a line in the log", async (t) => {
	const overlong = Buffer.alloc(4);
	overlong.writeUInt32BE(2 ** 31);
	const state = (fields: unknown): Buffer => encodeLinkJson(LinkKind.streamState, 1, fields);
	const fresh: [string, Buffer, RegExp][] = [
		["a frame over the limit", overlong, /announces 2147483648 bytes/],
		["a frame without a kind", Buffer.from([0, 0, 0, 1, 1]), /announces 1 bytes/],
		["another frame than HELLO first", encodeLink(LinkKind.opened, 1), /unexpected frame of kind 2/],
		["HELLO that is not JSON", encodeLink(LinkKind.hello, 0, Buffer.from("{")), /HELLO is not JSON/],
		["HELLO of another version", encodeLinkJson(LinkKind.hello, 0, { ...HELLO, version: 2 }), /HELLO: version/],
		["HELLO without a pod", encodeLinkJson(LinkKind.hello, 0, { ...HELLO, podId: "" }), /HELLO: podId/],
		["HELLO with a key that is a path", encodeLinkJson(LinkKind.hello, 0, { ...HELLO, podKey: "../../etc" }), /HELLO: podKey/],
		["CONTROL that is not JSON", encodeLink(LinkKind.control, 1, Buffer.from("x")), /CONTROL is not JSON/],
	];
	const attached: [string, Buffer, RegExp][] = [
		["an unknown kind", encodeLink(99, 0), /kind 99/],
		["a second HELLO", encodeLinkJson(LinkKind.hello, 0, HELLO), /kind 1/],
		["a stream state that is not one", state({ state: "odd" }), /STREAM_STATE: state/],
		["a stream state with a negative count", state({ state: "done", bytes: -1 }), /STREAM_STATE: bytes/],
		[
			"a ttrpc frame that is cut short",
			Buffer.concat([encodeLink(LinkKind.opened, 1), encodeLink(LinkKind.frame, 1, Buffer.alloc(4))]),
			/header for another length/,
		],
	];
	for (const [name, bytes, expected] of [...fresh, ...attached]) {
		await t.test(name, async (t) => {
			const { connect, lines } = await serve(t);
			const far = connect();
			if (attached.some(([other]) => other === name)) far.hello();
			far.socket.write(bytes);
			await once(far.socket, "close");
			t.match(lines.join(""), expected);
		});
	}
});

t.test("garbage never reaches a handler and never brings the server down", async (t) => {
	const { connect, attach, keepers } = await serve(t);
	const random = randomSource(5);
	for (let round = 0; round < 50; round++) {
		const far = connect();
		far.socket.end(randomBytes(random, 1 + random(5000)));
		await once(far.socket, "close");
	}
	t.equal(keepers.length, 0);
	await attach();
});

t.test("a lingering stream is nobody's: told once, forgotten, and its later states are ignored", async (t) => {
	const { attach } = await serve(t);
	const state = { state: "open", bytes: 0, hostPort: 5 };
	const { far, keeper } = await attach({ resumed: true, streams: [1, 2, 3].map((id) => ({ id, ...state })) });
	keeper.stream(1)?.close("linger");
	keeper.lingerOthers(new Set([3]));
	for (const id of [1, 2]) {
		const { kind, channel, payload } = await far.next();
		t.same([kind, channel, JSON.parse(payload.toString())], [LinkKind.streamClose, id, { mode: "linger" }]);
		t.equal(keeper.stream(id), undefined);
	}
	far.socket.write(encodeLinkJson(LinkKind.streamState, 1, { ...state, state: "done" }));
	far.socket.write(encodeLinkJson(LinkKind.streamState, 3, { ...state, state: "done", bytes: 7 }));
	t.same(await keeper.stream(3)?.done, { bytes: 7 });
});

t.test("a stream's reader is asked for once at a time; the end of the stream answers too", async (t) => {
	const { attach } = await serve(t);
	const state = { state: "open", bytes: 0, hostPort: 5 };
	const { far, keeper } = await attach({ resumed: true, streams: [1, 2].map((id) => ({ id, ...state })) });
	const [first, second] = [keeper.stream(1), keeper.stream(2)];
	if (first === undefined || second === undefined) throw new Error("HELLO named two streams");
	const answers = Promise.all([first.ask(), first.ask(), second.ask()]);
	for (const id of [1, 2]) {
		const { kind, channel, payload } = await far.next();
		t.same([kind, channel, payload.length], [LinkKind.streamAsk, id, 0]);
	}
	far.socket.write(encodeLinkJson(LinkKind.streamState, 1, state));
	far.socket.write(encodeLinkJson(LinkKind.streamState, 1, { ...state, bytes: 9, unread: 4, reader: true }));
	far.socket.write(encodeLinkJson(LinkKind.streamState, 2, { ...state, state: "done", bytes: 7 }));
	const told = { bytes: 9, unread: 4, reader: true };
	const ended = { bytes: 7, unread: 0, reader: false };
	t.same(await answers, [told, told, ended]);
	t.same(await second.ask(), ended);
	const unanswered = first.ask();
	far.socket.destroy();
	t.same(await unanswered, { bytes: 9, unread: 0, reader: false });
});

t.test("a keeper that sends more unanswered requests than it may is cut off", async (t) => {
	const { attach } = await serve(t, { request: () => new Promise(() => undefined) });
	const { far } = await attach();
	far.socket.write(encodeLink(LinkKind.opened, 1));
	for (let index = 0; index <= 16_384; index++) far.request(LinkKind.frame, 1, index * 2 + 1, "Wait");
	await once(far.socket, "close");
	t.pass();
});

t.test("answers that nobody reads yet arrive whole", async (t) => {
	const megabyte = Buffer.alloc(1024 * 1024, "x").toString();
	const { attach } = await serve(t, { request: async (_keeper, call) => ({ payload: Buffer.from(`${call.method}${megabyte}`) }) });
	const { far } = await attach();
	far.socket.pause();
	far.socket.write(encodeLink(LinkKind.opened, 1));
	for (let index = 0; index < 32; index++) far.request(LinkKind.frame, 1, index * 2 + 1, `m${index};`);
	far.socket.resume();
	for (let index = 0; index < 32; index++) {
		const { text } = await far.response();
		t.ok(text === `m${index};${megabyte}`);
	}
});

t.test("serveKeepers listens on a descriptor that it is given", async (t) => {
	const folder = shortFolder(t);
	const path = join(folder, "snpd.sock");
	const starter = net.createServer();
	starter.listen(join(folder, "bound"));
	await once(starter, "listening");
	// As the keeper does: listen, put in place by a rename, hand over as descriptor 3, and keep no end of it.
	renameSync(join(folder, "bound"), path);
	const { fd } = (starter as unknown as { _handle: { fd: number } })._handle;
	const module = (name: string): string => JSON.stringify(new URL(`../../shim/${name}`, import.meta.url).href);
	const program = `
		import { serveKeepers } from ${module("wire/keeper-server.ts")};
		import { Log } from ${module("base/log.ts")};
		const handlers = { attached() {}, request: async () => ({ payload: new Uint8Array(0) }), gone() {}, control: async () => ({ pid: process.pid }) };
		await serveKeepers(3, handlers, new Log(() => undefined));
	`;
	const child = spawn(process.execPath, ["--import=tsx", "--input-type=module", "-e", program], {
		stdio: ["ignore", "ignore", "inherit", fd],
	});
	t.teardown(() => void child.kill("SIGKILL"));
	starter.close();
	const far = new FarKeeper(path);
	t.teardown(() => far.socket.destroy());
	far.socket.write(encodeLinkJson(LinkKind.control, 1, {}));
	t.same(JSON.parse((await far.next()).payload.toString()), { pid: child.pid });
	child.kill("SIGKILL");
	await once(far.socket, "close");
});

t.test("serveKeepers says where it can't listen", async (t) => {
	const path = join(shortFolder(t), "missing", "s");
	await t.rejects(
		serveKeepers(
			path,
			{ attached: () => undefined, request: async () => ({ payload: Buffer.alloc(0) }), gone: () => undefined, control: async () => ({}) },
			memoryLog().log,
		),
		failing({
			reason: "internal",
			message: `listening for keepers on ${path} failed`,
		}),
	);
});
