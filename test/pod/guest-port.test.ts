/** Connections to the guest's ports, against an agent that answers rightly, wrongly or not. */

import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { t } from "tap";
import type { Test } from "tap";

import { connectGuestPort } from "../../shim/pod/guest-port.ts";

/** A VM's hybrid vsock socket; `agent` is what the guest does once the connection stands. */
async function guest(t: Test, agent: (socket: Socket) => void): Promise<string> {
	const folder = mkdtempSync(join(tmpdir(), "snp-"));
	const path = join(folder, "v");
	const server = createServer({ allowHalfOpen: true }, (socket) => {
		socket.once("data", (line) => {
			t.equal(line.toString(), "CONNECT 1029\n");
			socket.write("OK 7\n");
			agent(socket);
		});
	});
	t.teardown(() => {
		server.close();
		rmSync(folder, { recursive: true });
	});
	await new Promise<void>((resolve) => server.listen(path, resolve));
	return path;
}

async function text(socket: Socket): Promise<string> {
	let all = "";
	for await (const chunk of socket) all += String(chunk);
	return all;
}

t.test("the answer is taken off, the program's bytes are not", async (t) => {
	const path = await guest(t, (socket) => {
		socket.once("data", (line) => {
			t.equal(line.toString(), "8080\n");
			socket.end("OK\nhello");
		});
	});
	t.equal(await text(await connectGuestPort(path, 8080)), "hello");
});

t.test("an answer in pieces", async (t) => {
	const path = await guest(t, (socket) => {
		socket.once("data", () => {
			socket.write("O");
			setImmediate(() => socket.write("K\n"));
			socket.once("data", (chunk) => socket.end(chunk));
		});
	});
	const socket = await connectGuestPort(path, 1);
	socket.end("back");
	t.equal(await text(socket), "back");
});

t.test("a port that nobody has, and an answer that is none", async (t) => {
	const closed = await guest(t, (socket) => socket.once("data", () => socket.end()));
	await t.rejects(connectGuestPort(closed, 81), { reason: "guest.unreachable", message: /nobody listens on port 81/ });
	const wrong = await guest(t, (socket) => socket.once("data", () => socket.end("NO\n")));
	await t.rejects(connectGuestPort(wrong, 81), { reason: "guest.protocol", message: /answer for port 81/ });
});
