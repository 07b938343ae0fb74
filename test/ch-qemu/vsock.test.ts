/** The hybrid vsock socket: bytes arrive exactly, halves close alone, clients wait for the guest. */
import { connect } from "node:net";
import { join } from "node:path";
import t from "tap";
import { ask, dial, everything, fileHolds, soon, Vmm, shortFolder, vmConfig } from "./lab.ts";

const MIB = 1024 * 1024;

/** Byte i of what the guest's `source` sends. */
const pattern = (i: number): number =>
	((i & 255) ^ Math.imul(Math.floor(i / 256) & 255, 31) ^ Math.imul(Math.floor(i / 65536) & 255, 7)) & 255;

/** 16 MiB of the pattern: from there on it repeats. */
const PATTERN = Buffer.from(Uint8Array.from({ length: 16 * MIB }, (_, i) => pattern(i)));

/** Reads a whole stream and returns how many bytes came and where the first wrong one is (-1: none). */
async function checkPattern(stream: AsyncIterable<Buffer>): Promise<{ bytes: number; wrongAt: number }> {
	let bytes = 0;
	let wrongAt = -1;
	for await (const chunk of stream) {
		for (let done = 0; done < chunk.length && wrongAt < 0; ) {
			const at = bytes + done;
			const size = Math.min(chunk.length - done, PATTERN.length - (at % PATTERN.length));
			const wanted = PATTERN.subarray(at % PATTERN.length, (at % PATTERN.length) + size);
			if (!chunk.subarray(done, done + size).equals(wanted)) wrongAt = at;
			done += size;
		}
		bytes += chunk.length;
	}
	return { bytes, wrongAt };
}

t.test("vsock", async (t) => {
	const folder = shortFolder(t);
	const vmm = await Vmm.start(folder);
	t.teardown(() => vmm.kill());
	const path = join(folder, "vsock");
	await vmm.put("vm.create", vmConfig(folder));
	await vmm.put("vm.boot");

	await t.test("a client that comes before the guest's driver waits, and is answered or refused by the guest", async (t) => {
		const early = connect(path);
		early.write("CONNECT 77\n");
		const ended = new Promise((resolve) => early.once("close", resolve));
		early.resume();
		await vmm.ready();
		await soon("the refusal", ended);
		t.match(await ask(path, "ping"), "pong");
	});

	await t.test("host ports count from 2^30 as the real VMM's, and nobody has one twice", async (t) => {
		const first = await dial(path);
		const second = await dial(path);
		t.ok(first.hostPort >= 1 << 30 && second.hostPort > first.hostPort);
		first.socket.destroy();
		second.socket.destroy();
	});

	await t.test("256 MiB from the guest arrive exactly, and then the end", async (t) => {
		const { socket } = await dial(path);
		socket.write(`source ${256 * MIB}\n`);
		t.same(await soon("256 MiB", checkPattern(socket)), { bytes: 256 * MIB, wrongAt: -1 });
	});

	await t.test("a reader that begins when the guest has closed already loses nothing", async (t) => {
		const { socket } = await dial(path);
		// The guest writes all of it and closes: 192 KiB fit what the back end and the socket hold.
		socket.write(`source ${192 * 1024}\n`);
		socket.pause();
		t.match(await ask(path, "ping"), "pong");
		t.same(await soon("the rest", checkPattern(socket)), { bytes: 192 * 1024, wrongAt: -1 });
	});

	await t.test("64 MiB go both ways at once", async (t) => {
		const { socket } = await dial(path);
		socket.write("echo\n");
		const back = checkPattern(socket);
		for (let i = 0; i < 4; i++) if (!socket.write(PATTERN)) await new Promise((resolve) => socket.once("drain", resolve));
		socket.end();
		t.same(await soon("the echo", back), { bytes: 64 * MIB, wrongAt: -1 });
	});

	await t.test("the end of the host's half reaches the guest, whose answer still comes", async (t) => {
		t.equal(await ask(path, "late", true), "late\n");
		t.match(await ask(path, "sink", true), /^0 /);
	});

	await t.test("the end of the guest's half reaches the host, whose bytes still go", async (t) => {
		const { socket } = await dial(path);
		// The guest answers, ends its half, and reads on until ours ends.
		socket.write("half\n");
		let got = "";
		socket.on("data", (chunk: Buffer) => (got += chunk));
		await soon("the end of the guest's half", new Promise((resolve) => socket.once("end", resolve)));
		t.equal(got, "ok\n");
		socket.end(PATTERN.subarray(0, MIB));
		await fileHolds(join(folder, "serial"), "the guest's count", (text) => text.includes(`HALF ${MIB}`));
	});

	await t.test("100 connections at once, and 300 one after another", async (t) => {
		const answers = await soon("100 answers", Promise.all(Array.from({ length: 100 }, () => ask(path, "ping"))));
		t.same(new Set(answers), new Set(["pong\n"]));
		for (let i = 0; i < 300; i++) t.equal(await ask(path, "ping"), "pong\n");
	});

	await t.test("what is no CONNECT, and a port where nobody listens, is closed without an answer", async (t) => {
		for (const line of [
			"CONNECT\n",
			"HELLO\n",
			"CONNECT 99999999999\n",
			"CONNECT 1024 x\n",
			`CONNECT ${"1".repeat(40)}`,
			"CONNECT 1025\n",
			"CONNECT 4294967295\n",
		]) {
			const socket = connect(path);
			socket.on("error", () => undefined);
			socket.write(line);
			let got = "";
			socket.on("data", (chunk: Buffer) => (got += chunk));
			await soon(`the end of '${line.trim()}'`, new Promise((resolve) => socket.once("close", resolve)));
			t.equal(got, "", line.trim());
		}
	});

	await t.test("a request may come with the CONNECT in one write", async (t) => {
		const socket = connect({ path, allowHalfOpen: true });
		socket.write("connect 1024\r\nping\n");
		t.match((await soon("both answers", everything(socket))).toString(), /^OK \d+\npong\n$/);
	});

	await t.test("a client that goes away frees the guest's side", async (t) => {
		const { socket } = await dial(path);
		socket.write(`source ${64 * MIB}\n`);
		await new Promise((resolve) => socket.once("data", resolve));
		socket.destroy();
		t.equal(await ask(path, "ping"), "pong\n");
	});

	await t.test("a device that is plugged later works as well", async (t) => {
		const late = await Vmm.start(shortFolder(t));
		t.teardown(() => late.kill());
		const config = vmConfig(late.folder);
		delete config["vsock"];
		await late.put("vm.create", config);
		await late.put("vm.boot");
		await late.ready();
		const added = await late.put("vm.add-vsock", { cid: 5, socket: join(late.folder, "vsock"), id: "late" });
		t.equal(added.status, 200, added.text);
		await fileHolds(join(late.folder, "serial"), "the guest", (text) => text.includes("READY"));
		let answer = "";
		while (answer !== "pong\n") answer = await ask(join(late.folder, "vsock"), "ping").catch(() => "");
		t.pass("the guest found it and answered");
	});
});
