import { once } from "node:events";
import type { Socket } from "node:net";
import t from "tap";
import type { Test } from "tap";
import { ShimError } from "../../shim/base/errors.ts";
import { RemoteError, TtrpcClient } from "../../shim/wire/client.ts";
import type { ClientOptions } from "../../shim/wire/client.ts";
import { decodeRequest, encodeFrame, encodeResponse, FrameReader, FrameType } from "../../shim/wire/frame.ts";
import type { Request } from "../../shim/wire/frame.ts";
import { randomBytes, randomSource } from "../support/random.ts";
import { connectedPair, memoryLog } from "./support.ts";
import { failing } from "../base/failing.ts";

interface Call extends Request {
	readonly id: number;
}

/** A client and the far end, on which the test answers by hand. */
async function dial(t: Test, options: Partial<ClientOptions> = {}) {
	const { near, far } = await connectedPair(t);
	const { log, lines } = memoryLog();
	const client = new TtrpcClient(near, { name: "agent of pod a", log, ...options });
	const reader = new FrameReader("call.invalid");
	const calls: Call[] = [];
	let arrived: () => void = () => undefined;
	far.on("data", (chunk: Buffer) => {
		for (const frame of reader.push(chunk)) calls.push({ id: frame.streamId, ...decodeRequest(frame.data) });
		arrived();
	});
	const received = async (count: number): Promise<Call[]> => {
		while (calls.length < count) await new Promise<void>((resolve) => (arrived = resolve));
		return calls;
	};
	return { client, far, received, lines };
}

function answer(far: Socket, id: number, text: string): void {
	far.write(encodeFrame(FrameType.response, id, encodeResponse({ code: 0, message: "", payload: Buffer.from(text) })));
}

const forever = { timeoutMs: 0 };
const none = new Uint8Array(0);

t.test("TtrpcClient.call keeps many calls apart, answered in any order", async (t) => {
	const { client, far, received } = await dial(t);
	const outcomes = ["a", "b", "c"].map((name) => client.call("svc", name, Buffer.from(name), { timeoutMs: 60_000 }));
	const calls = await received(3);
	t.same(
		calls.map((call) => [call.id, call.method, call.timeoutMs]),
		[
			[1, "a", 60_000],
			[3, "b", 60_000],
			[5, "c", 60_000],
		],
	);
	for (const call of [...calls].reverse()) answer(far, call.id, `answer to ${call.method}`);
	t.same(
		(await Promise.all(outcomes)).map((payload) => Buffer.from(payload).toString()),
		["answer to a", "answer to b", "answer to c"],
	);
	t.equal(client.pendingCalls, 0);
});

t.test("TtrpcClient.call gives the peer's status as RemoteError", async (t) => {
	const { client, far, received } = await dial(t);
	const outcome = client.call("svc", "m", none, forever);
	const [call] = await received(1);
	t.equal(call?.timeoutMs, undefined, "a call without a limit tells none");
	far.write(encodeFrame(FrameType.response, 1, encodeResponse({ code: 5, message: "no such process", payload: none })));
	const error = await outcome.catch((thrown: unknown) => thrown);
	t.ok(error instanceof RemoteError);
	t.match(error, { code: 5, message: "no such process" });
});

t.test("TtrpcClient.call ends at its deadline and ignores the late answer", async (t) => {
	const { client, far, received } = await dial(t);
	await t.rejects(
		client.call("svc", "slow", none, { timeoutMs: 1 }),
		failing({ reason: "wait.deadline", message: "agent of pod a: slow: no answer within 1 ms" }),
	);
	await received(1);
	answer(far, 1, "late");
	const next = client.call("svc", "next", none, forever);
	await received(2);
	answer(far, 3, "ok");
	t.equal(Buffer.from(await next).toString(), "ok");
});

t.test("TtrpcClient.call ends when its signal does", async (t) => {
	const { client } = await dial(t);
	const controller = new AbortController();
	const lost = new ShimError("pod.lost", "the VM has ended");
	const outcome = client.call("svc", "m", none, { timeoutMs: 0, signal: controller.signal });
	controller.abort(lost);
	t.equal(await outcome.catch((error: unknown) => error), lost);
	await t.rejects(client.call("svc", "m", none, { timeoutMs: 0, signal: AbortSignal.abort() }), failing({ reason: "wait.canceled" }));
	t.equal(client.pendingCalls, 0);
});

t.test("TtrpcClient.call refuses too many calls and takes more after an answer", async (t) => {
	const { client, far, received } = await dial(t, { maxWaits: 2 });
	const first = client.call("svc", "a", none, forever);
	const second = client.call("svc", "b", none, forever);
	await t.rejects(client.call("svc", "c", none, forever), failing({ reason: "busy" }));
	await received(2);
	answer(far, 1, "");
	await first;
	const third = client.call("svc", "d", none, forever);
	await received(3);
	answer(far, 3, "");
	answer(far, 5, "");
	await Promise.all([second, third]);
});

t.test("TtrpcClient.call: waiting calls and others do not keep each other out", async (t) => {
	const { client, far, received } = await dial(t, { maxCalls: 1, maxWaits: 1 });
	const wait = client.call("svc", "wait", none, forever);
	const kill = client.call("svc", "kill", none, { timeoutMs: 60_000 });
	await t.rejects(client.call("svc", "kill", none, { timeoutMs: 60_000 }), failing({ reason: "busy" }));
	await t.rejects(client.call("svc", "wait", none, forever), failing({ reason: "busy" }));
	await received(2);
	answer(far, 3, "");
	await kill;
	const again = client.call("svc", "kill", none, { timeoutMs: 60_000 });
	await received(3);
	answer(far, 5, "");
	answer(far, 1, "");
	await Promise.all([wait, again]);
});

t.test("TtrpcClient.call refuses a payload that no frame can hold", async (t) => {
	const { client } = await dial(t);
	await t.rejects(client.call("svc", "m", new Uint8Array(5 * 1024 * 1024), forever), failing({ reason: "call.invalid" }));
	t.equal(client.pendingCalls, 0);
});

t.test("the connection's end fails all calls, and later ones", async (t) => {
	const { client, far, received } = await dial(t);
	const outcomes = [client.call("svc", "a", none, forever), client.call("svc", "b", none, forever)];
	await received(2);
	far.end();
	for (const outcome of outcomes)
		await t.rejects(outcome, failing({ reason: "guest.unreachable", message: "agent of pod a closed the connection" }));
	await t.rejects(client.call("svc", "c", none, forever), failing({ reason: "guest.unreachable" }));
	t.match(await client.closed, { reason: "guest.unreachable" });
});

t.test("TtrpcClient.close gives its own reason to all calls", async (t) => {
	const { client, far, received } = await dial(t);
	const outcome = client.call("svc", "a", none, forever);
	await received(1);
	const reason = new ShimError("pod.lost", "the VM of pod a has ended");
	client.close(reason);
	client.close(new ShimError("internal", "a second reason changes nothing"));
	t.equal(await outcome.catch((error: unknown) => error), reason);
	t.equal(await client.closed, reason);
	await once(far, "close");
});

t.test("a client on a connection that is gone fails at once", async (t) => {
	const { near } = await connectedPair(t);
	near.destroy();
	const client = new TtrpcClient(near, { name: "agent", log: memoryLog().log });
	await t.rejects(client.call("svc", "m", none, forever), failing({ reason: "guest.unreachable" }));
});

t.test("a peer that breaks the protocol is cut off", async (t) => {
	const overlong = Buffer.alloc(10);
	overlong.writeUInt32BE(2 ** 31);
	const cases: [string, Buffer][] = [
		["a response to a call that was never made", encodeFrame(FrameType.response, 99, none)],
		["a response with an even number", encodeFrame(FrameType.response, 2, none)],
		["a request", encodeFrame(FrameType.request, 1, none)],
		["a frame over the limit", overlong],
		["a response that is not protobuf", encodeFrame(FrameType.response, 1, Buffer.from([0x0a, 0x7f]))],
	];
	for (const [name, bytes] of cases) {
		await t.test(name, async (t) => {
			const { client, far, received, lines } = await dial(t);
			const outcome = client.call("svc", "a", none, forever);
			await received(1);
			far.write(bytes);
			await t.rejects(outcome, failing({ reason: "guest.protocol" }));
			await once(far, "close");
			t.equal(lines.length, 1, "one line in the log");
		});
	}
});

t.test("an answer over the client's own limit ends the connection", async (t) => {
	const { client, far, received } = await dial(t, { maxAnswerBytes: 100 });
	const outcome = client.call("svc", "a", none, forever);
	await received(1);
	answer(far, 1, "x".repeat(200));
	await t.rejects(outcome, failing({ reason: "guest.protocol" }));
});

t.test("garbage from the peer ends calls with a ShimError", async (t) => {
	const random = randomSource(11);
	for (let round = 0; round < 20; round++) {
		const { client, far, received } = await dial(t);
		const outcome = client.call("svc", "a", none, forever);
		await received(1);
		far.end(randomBytes(random, 1 + random(100_000)));
		const error = await outcome.catch((thrown: unknown) => thrown);
		t.ok(error instanceof ShimError);
	}
});
