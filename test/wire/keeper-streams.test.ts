/** Streams between snpd and a keeper. */
import t from "tap";
import { encodeLinkJson, LinkKind } from "../../shim/wire/link.ts";
import { failing } from "../base/failing.ts";
import { serve } from "./far-keeper.ts";

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
