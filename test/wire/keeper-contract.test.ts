/** What a keeper sends is bounded and checked: whoever breaks the contract is cut off, and nobody else notices. */
import { once } from "node:events";
import t from "tap";
import { ShimError } from "../../shim/base/errors.ts";
import { encodeFrame, encodeRequest, FrameType } from "../../shim/wire/frame.ts";
import { encodeLink, encodeLinkJson, LinkKind } from "../../shim/wire/link.ts";
import { randomBytes, randomSource } from "../support/random.ts";
import { HELLO, serve } from "./far-keeper.ts";

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

t.test("an answer that no frame can hold becomes an error", async (t) => {
	const { attach } = await serve(t, { request: async () => ({ payload: new Uint8Array(5 * 1024 * 1024) }) });
	const { far } = await attach();
	far.socket.write(encodeLink(LinkKind.opened, 1));
	far.request(LinkKind.frame, 1, 1, "Stats");
	t.match(await far.response(), { code: 8 });
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

t.test("a keeper that sends more unanswered requests than it may is cut off", async (t) => {
	const { attach } = await serve(t, { request: () => new Promise(() => undefined) });
	const { far } = await attach();
	far.socket.write(encodeLink(LinkKind.opened, 1));
	for (let index = 0; index <= 16_384; index++) far.request(LinkKind.frame, 1, index * 2 + 1, "Wait");
	await once(far.socket, "close");
	t.pass();
});
