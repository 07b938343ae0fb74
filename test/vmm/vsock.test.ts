/** Dialling a guest through a hybrid vsock socket. */

import { once } from "node:events";
import { existsSync } from "node:fs";
import { connect, createServer } from "node:net";
import type { Server, Socket } from "node:net";
import { join } from "node:path";
import { t } from "tap";
import type { Test } from "tap";

import { dialGuest } from "../../shim/vmm/vsock.ts";
import { failure, shortFolder } from "./tools.ts";

type OnLine = (line: string, socket: Socket, attempt: number) => void;

/** A hybrid socket that hands over the first line of each connection. */
async function hybrid(t: Test, onLine: OnLine): Promise<{ path: string; attempts: () => number }> {
	const path = join(shortFolder(t), "v.sock");
	const sockets = new Set<Socket>();
	let attempts = 0;
	const server: Server = createServer((socket) => {
		attempts += 1;
		const attempt = attempts;
		sockets.add(socket);
		socket.on("error", () => undefined);
		socket.once("data", (chunk) => onLine(chunk.toString("latin1"), socket, attempt));
	});
	await new Promise<void>((resolve) => server.listen(path, resolve));
	t.teardown(async () => {
		for (const socket of sockets) socket.destroy();
		await new Promise((resolve) => server.close(resolve));
	});
	return { path, attempts: () => attempts };
}

const text = async (socket: Socket, bytes: number): Promise<string> => {
	let received = "";
	for await (const chunk of socket) {
		received += String(chunk);
		if (received.length >= bytes) break;
	}
	return received;
};

t.test("gives the host's port, and what the guest says right after OK", async (t) => {
	const { path } = await hybrid(t, (line, socket) => {
		t.equal(line, "CONNECT 1024\n");
		socket.write("OK 1073741824\nhello");
		socket.write(" guest");
	});
	const { socket, hostPort } = await dialGuest(path, 1024, { timeoutMs: 5000 });
	t.equal(hostPort, 1073741824);
	t.equal(await text(socket, 11), "hello guest");
});

t.test("OK may come in pieces, and bytes are not touched", async (t) => {
	const { path } = await hybrid(t, (_line, socket) => {
		socket.write("O");
		setImmediate(() => socket.write("K 7\n\x00"));
		socket.once("data", (chunk) => socket.end(chunk));
	});
	const { socket, hostPort } = await dialGuest(path, 1, { timeoutMs: 5000 });
	t.equal(hostPort, 7);
	socket.write("ping");
	t.equal(await text(socket, 5), "\x00ping");
});

t.test("is tried again while nobody listens in the guest", async (t) => {
	const { path, attempts } = await hybrid(t, (_line, socket, attempt) => {
		if (attempt === 1) socket.end();
		else if (attempt === 2) socket.destroy();
		else socket.write("OK 1\n");
	});
	const { socket } = await dialGuest(path, 1024, { timeoutMs: 5000 });
	socket.destroy();
	t.equal(attempts(), 3);
});

t.test("a guest that starts is asked again as soon as it tells that it listens, and once for each word", async (t) => {
	let told = 0;
	const { path, attempts } = await hybrid(t, (_line, socket, attempt) => {
		socket.on("close", () => {
			if (attempt < 2 || attempt > 3) return;
			// The ear is open when the second attempt comes.
			const word = connect(`${path}_1030`);
			word.on("error", () => undefined).on("connect", () => (told += 1));
		});
		if (attempt < 5) socket.end();
		else socket.write("OK 1\n");
	});
	const { socket } = await dialGuest(path, 1024, { timeoutMs: 5000, starting: true });
	socket.destroy();
	t.equal(attempts(), 5);
	t.equal(told, 1, "the second word finds nobody");
	t.notOk(existsSync(`${path}_1030`));
});

t.test("a guest that starts is also reached where its word can't be heard", async (t) => {
	const { path } = await hybrid(t, (_line, socket, attempt) => (attempt < 3 ? socket.end() : socket.write("OK 1\n")));
	const other = createServer().listen(`${path}_1030`);
	await once(other, "listening");
	t.teardown(() => other.close());
	const { socket } = await dialGuest(path, 1024, { timeoutMs: 5000, starting: true });
	socket.destroy();
	t.ok(other.listening);
});

t.test("a VMM that never answers, and one that is not there, are named", async (t) => {
	const { path } = await hybrid(t, () => undefined);
	const silent = await failure(dialGuest(path, 1024, { timeoutMs: 30 }));
	t.match(silent, { reason: "guest.unreachable", message: `port 1024 of the guest behind ${path}: no result within 30 ms` });
	const missing = await failure(dialGuest(`${path}.no`, 1024, { timeoutMs: 5000 }));
	t.match(missing, { reason: "guest.unreachable", message: /ENOENT/ });
	const abort = new AbortController();
	const canceled = failure(dialGuest(path, 1024, { timeoutMs: 5000, signal: abort.signal }));
	abort.abort();
	t.equal((await canceled).reason, "wait.canceled");
});

t.test("another answer than OK breaks the protocol", async (t) => {
	const answers = ["NO\n", "OK x\n", "OK 1 2\n", `OK ${"1".repeat(40)}`];
	for (const answer of answers) {
		const { path } = await hybrid(t, (_line, socket) => socket.write(answer));
		t.equal((await failure(dialGuest(path, 1024, { timeoutMs: 5000 }))).reason, "guest.protocol", answer.trim());
	}
});
