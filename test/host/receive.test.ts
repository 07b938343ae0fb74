/** Descriptors that arrive on a socket. */

import { fstatSync, mkdtempSync, openSync, closeSync, rmSync, statSync } from "node:fs";
import { createServer } from "node:net";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { t } from "tap";
import type { Test } from "tap";

import { receive } from "../../native/src/receive.ts";
import type { Received } from "../../native/src/receive.ts";
import { connectUnix, sendFds } from "../../native/src/socket.ts";
import { closeFd } from "../../native/src/file.ts";
import { MAX_GUEST_VCPUS } from "../../shim/base/names.ts";

/** Two connected sockets: the sender's descriptor, and the receiver's. Neither is read by Node. */
async function pair(t: Test): Promise<{ readonly sender: number; readonly receiver: number; readonly peer: Socket }> {
	const folder = mkdtempSync(join(tmpdir(), "snp-"));
	const server = createServer({ pauseOnConnect: true });
	t.teardown(() => {
		server.close();
		rmSync(folder, { recursive: true });
	});
	const path = join(folder, "s");
	await new Promise<void>((resolve) => server.listen(path, resolve));
	const accepted = new Promise<Socket>((resolve) => server.once("connection", resolve));
	const sender = connectUnix(path);
	const peer = await accepted;
	t.teardown(() => peer.destroy());
	const { fd } = (peer as unknown as { readonly _handle: { readonly fd: number } })._handle;
	return { sender, receiver: fd, peer };
}

t.test("receive gives bytes with their descriptors, then the end", async (t) => {
	const { sender, receiver } = await pair(t);
	const heard: Received[] = [];
	const ended = new Promise<void>((resolve) => {
		receive(receiver, (received) => {
			heard.push(received);
			if (received.bytes.byteLength === 0) resolve();
		});
	});
	const file = openSync("/dev/null", "r");
	sendFds(sender, Buffer.from("hello"), [file, file]);
	closeSync(file);
	closeFd(sender);
	await ended;
	t.strictSame(
		heard.map(({ bytes, error }) => [bytes.toString(), error]),
		[
			["hello", 0],
			["", 0],
		],
	);
	const fds = heard[0]?.fds ?? [];
	t.equal(fds.length, 2);
	for (const fd of fds) {
		t.equal(fstatSync(fd).rdev, statSync("/dev/null").rdev);
		closeFd(fd);
	}
});

t.test("nothing comes after the end was asked for; what can't be waited for is refused", async (t) => {
	const { sender, receiver } = await pair(t);
	let count = 0;
	const stop = receive(receiver, () => count++);
	stop();
	stop();
	sendFds(sender, Buffer.from("x"), [sender]);
	closeFd(sender);
	await new Promise((resolve) => setImmediate(resolve));
	t.equal(count, 0);
	const file = openSync("/proc/self/status", "r");
	t.throws(() => receive(file, () => undefined), { code: "EPERM" });
	closeSync(file);
	t.throws(() => receive(-1, () => undefined), RangeError);
});

t.test("a message carries a queue for each processor of the largest guest", async (t) => {
	const { sender, receiver } = await pair(t);
	const heard = new Promise<Received>((resolve) => receive(receiver, resolve));
	const file = openSync("/dev/null", "r");
	sendFds(sender, Buffer.from("x"), Array<number>(MAX_GUEST_VCPUS).fill(file));
	closeSync(file);
	const { fds } = await heard;
	t.equal(fds.length, MAX_GUEST_VCPUS);
	for (const fd of fds) closeFd(fd);
	closeFd(sender);
});
