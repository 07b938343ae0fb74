/** Keepers are served: their requests answered in order, their links replaced and ended. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { renameSync } from "node:fs";
import net from "node:net";
import { join } from "node:path";
import t from "tap";
import { deferred } from "../../shim/base/deadline.ts";
import { ShimError } from "../../shim/base/errors.ts";
import { serveKeepers } from "../../shim/wire/keeper-server.ts";
import type { Keeper, KeeperRequest } from "../../shim/wire/keeper.ts";
import { encodeLink, encodeLinkJson, LinkKind } from "../../shim/wire/link.ts";
import { memoryLog, shortFolder } from "./support.ts";
import { failing } from "../base/failing.ts";
import { FarKeeper, serve } from "./far-keeper.ts";

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
