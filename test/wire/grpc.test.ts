/** The gRPC client beside a server of the gRPC project's own library. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Metadata, Server, ServerCredentials, status } from "@grpc/grpc-js";
import type { handleServerStreamingCall, handleUnaryCall } from "@grpc/grpc-js";
import t from "tap";
import type { Test } from "tap";

import { GrpcChannel, GrpcError } from "../../shim/wire/grpc.ts";
import { run } from "../support/process.ts";

const CALL = { timeoutMs: 30_000 };
const LARGE_BYTES = 3 * 1024 * 1024;
const same = (bytes: Buffer): Buffer => bytes;

interface Handlers {
	readonly unary: handleUnaryCall<Buffer, Buffer>;
	readonly stream: handleServerStreamingCall<Buffer, Buffer>;
}

const HANDLERS: Handlers = {
	unary: (call, answer) => {
		const text = call.request.toString("utf8");
		if (text === "never") return;
		if (text === "fail") return answer({ code: status.NOT_FOUND, details: "nobody – 100% sure" });
		if (text === "who") return answer(null, Buffer.from(call.metadata.get("containerd-namespace").join()));
		if (text === "large") return answer(null, Buffer.alloc(LARGE_BYTES, "x"));
		if (text === "too large") return answer(null, Buffer.alloc(17 * 1024 * 1024));
		answer(null, call.request);
	},
	stream: (call) => {
		for (const word of call.request.toString("utf8").split(" ")) call.write(Buffer.from(word));
		if (call.request.includes("endless")) return;
		if (call.request.includes("fail")) call.emit("error", { code: status.ABORTED, details: "enough", metadata: new Metadata() });
		else call.end();
	},
};

async function serve(path: string): Promise<Server> {
	const server = new Server({ "grpc.max_send_message_length": -1 });
	const method = {
		requestStream: false,
		requestSerialize: same,
		requestDeserialize: same,
		responseSerialize: same,
		responseDeserialize: same,
	};
	const definition = {
		unary: { ...method, path: "/test.Words/Unary", responseStream: false },
		stream: { ...method, path: "/test.Words/Stream", responseStream: true },
	};
	server.addService(definition, { unary: HANDLERS.unary, stream: HANDLERS.stream });
	await new Promise<void>((resolve, reject) => {
		server.bindAsync(`unix:${path}`, ServerCredentials.createInsecure(), (error) => (error === null ? resolve() : reject(error)));
	});
	return server;
}

async function pair(t: Test): Promise<{ readonly path: string; readonly server: Server; readonly channel: GrpcChannel }> {
	const folder = mkdtempSync(join(tmpdir(), "snp-"));
	const path = join(folder, "grpc.sock");
	const server = await serve(path);
	const channel = new GrpcChannel(path);
	t.teardown(() => {
		channel.close();
		server.forceShutdown();
		rmSync(folder, { recursive: true, force: true });
	});
	return { path, server, channel };
}

const unary = async (channel: GrpcChannel, text: string, call = {}): Promise<string> =>
	(await channel.unary("/test.Words/Unary", Buffer.from(text), { ...CALL, ...call })).toString("utf8");

async function streamed(channel: GrpcChannel, text: string, into: string[], signal?: AbortSignal): Promise<void> {
	for await (const one of channel.stream("/test.Words/Stream", Buffer.from(text), { timeoutMs: 0, signal }))
		into.push(one.toString("utf8"));
}

t.test("an answer of any length comes back, and metadata goes along", async (t) => {
	const { channel } = await pair(t);
	t.equal(await unary(channel, "hello"), "hello");
	t.equal(await unary(channel, "who", { metadata: { "containerd-namespace": "k8s.io" } }), "k8s.io");
	t.equal((await unary(channel, "large")).length, LARGE_BYTES);
	const words = Array.from({ length: 40 }, (_, index) => `call ${index}`);
	t.same(await Promise.all(words.map((word) => unary(channel, word))), words, "many at once, each its own");
});

t.test("a status is an error with its code and its text", async (t) => {
	const { channel } = await pair(t);
	await t.rejects(unary(channel, "fail"), new GrpcError(status.NOT_FOUND, "nobody – 100% sure"));
	await t.rejects(channel.unary("/test.Words/Unknown", Buffer.alloc(0), CALL), { name: "GrpcError", code: status.UNIMPLEMENTED });
	t.equal(await unary(channel, "still here"), "still here");
});

t.test("a stream gives its messages until its end, or its failure", async (t) => {
	const { channel } = await pair(t);
	const words: string[] = [];
	await streamed(channel, "one two three", words);
	t.same(words, ["one", "two", "three"]);
	await t.rejects(streamed(channel, "one fail", []), new GrpcError(status.ABORTED, "enough"));
});

t.test("a wait has an end: its time, its signal, the channel's", async (t) => {
	const { channel } = await pair(t);
	await t.rejects(unary(channel, "never", { timeoutMs: 50 }), { message: /within 50 ms|deadline exceeded/iu });
	const abort = new AbortController();
	const words: string[] = [];
	const ended = streamed(channel, "endless", words, abort.signal);
	abort.abort(new Error("no more"));
	await t.rejects(ended, { message: "no more" });
	const closed = unary(channel, "never");
	closed.catch(() => undefined);
	await unary(channel, "the connection is there");
	channel.close();
	await t.rejects(closed);
	t.equal(await unary(channel, "again"), "again", "a later call makes a new connection");
});

t.test("a call keeps its program alive, whatever became of calls on an earlier connection", async (t) => {
	const { path } = await pair(t);
	const module = new URL("../../shim/wire/grpc.ts", import.meta.url).href;
	const script = `import { GrpcChannel } from ${JSON.stringify(module)};
		const channel = new GrpcChannel(${JSON.stringify(path)});
		const ask = (text) => channel.stream("/test.Words/Stream", Buffer.from(text), { timeoutMs: 0 });
		const first = ask("endless");
		await first.next();
		channel.close();
		let count = 0;
		for await (const word of ask(${JSON.stringify("word ".repeat(5_000).trim())})) count += 1;
		console.log(count);`;
	const program = await run([process.execPath, "--import", "tsx", "--input-type=module", "-e", script]);
	t.match(program, { code: 0, stdout: "5000\n" });
});

t.test("an answer that is too long is refused", async (t) => {
	const { channel } = await pair(t);
	await t.rejects(unary(channel, "too large"), { message: /or one of 17825792 bytes/u });
	t.equal(await unary(channel, "still here"), "still here");
});

t.test("a server that has gone is told of, and one that comes back is found", async (t) => {
	const { path, server, channel } = await pair(t);
	t.equal(await unary(channel, "hello"), "hello");
	server.forceShutdown();
	rmSync(path, { force: true });
	await t.rejects(unary(channel, "anybody?"));
	const next = await serve(path);
	t.teardown(() => next.forceShutdown());
	t.equal(await unary(channel, "welcome back"), "welcome back");
});
