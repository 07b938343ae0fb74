import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";

import { MessageSocket } from "../../shim/host/message-socket.ts";
import { closeFd, isListening, listenUnix } from "../../shim/host/sockets.ts";

const LARGE_BYTES = 205 * 1024;

/** A socket and a Python program that serves one connection of it, `c`. */
function serve(t: Test, program: string) {
	const root = mkdtempSync(join(tmpdir(), "snp-"));
	const path = join(root, "s.sock");
	const listening = listenUnix(path, true);
	const script = `import array, os, socket, sys\ns = socket.socket(fileno=3); c, _ = s.accept()\n${program}`;
	const python = spawn("python3", ["-c", script], { cwd: root, stdio: ["pipe", "inherit", "inherit", listening] });
	closeFd(listening);
	t.teardown(() => {
		python.kill("SIGKILL");
		rmSync(root, { recursive: true, force: true });
	});
	return { root, path, python };
}

/** A connection with what comes on it, piece by piece. */
function connected(path: string) {
	const pieces: (string | undefined)[] = [];
	let arrived: () => void = () => undefined;
	const socket = new MessageSocket(path, (bytes) => {
		pieces.push(bytes?.toString());
		arrived();
	});
	const came = async (count: number): Promise<readonly (string | undefined)[]> => {
		// Listening keeps no program alive.
		const alive = setInterval(() => undefined, 1000);
		while (pieces.length < count) await new Promise<void>((resolve) => (arrived = resolve));
		clearInterval(alive);
		return pieces;
	};
	return { socket, came };
}

t.test("a message arrives whole, with its descriptors, and the answer comes back, and the end", async (t) => {
	const { root, path, python } = serve(
		t,
		`
data, control, _, _ = c.recvmsg(65536, 4096)
fds = array.array("i"); fds.frombytes(control[0][2])
while len(data) < ${LARGE_BYTES}: data += c.recv(65536)
open("received", "w").write(" ".join([str(len(data)), str(len(fds))] + [os.read(fd, 100).decode() for fd in fds[:1]]))
c.sendall(b"done")`,
	);
	writeFileSync(join(root, "sent"), "through a descriptor");
	const file = openSync(join(root, "sent"), "r");
	const before = readdirSync("/proc/self/fd").length;
	const { socket, came } = connected(path);
	socket.send(Buffer.alloc(LARGE_BYTES, "x"), [file, file]);
	t.same(await came(2), ["done", undefined]);
	socket.close();
	socket.close();
	if (python.exitCode === null) await once(python, "exit");
	t.equal(readFileSync(join(root, "received"), "utf8"), `${LARGE_BYTES} 2 through a descriptor`);
	t.ok(readdirSync("/proc/self/fd").length <= before);
	closeSync(file);
	t.throws(() => socket.send(Buffer.from("x")), { code: "EPIPE" });
});

t.test("a peer that reads nothing is told of, and one that sends descriptors has sent them in vain", async (t) => {
	const { path, python } = serve(
		t,
		`
socket.send_fds(c, [b"take"], [0, 1, 2])
sys.stdin.readline()`,
	);
	const before = readdirSync("/proc/self/fd").length;
	const { socket, came } = connected(path);
	t.same(await came(1), ["take"]);
	t.equal(readdirSync("/proc/self/fd").length, before + 2, "the socket's own, and its listener's");
	socket.send(Buffer.alloc(LARGE_BYTES));
	t.throws(
		() => {
			for (let count = 0; count < 8; count++) socket.send(Buffer.alloc(LARGE_BYTES));
		},
		{ code: "EAGAIN" },
	);
	socket.close();
	python.stdin?.end("\n");
});

t.test("nobody listens where there is no socket, or one that was left", async (t) => {
	const { path, python } = serve(t, "sys.stdin.readline()");
	t.ok(isListening(path));
	python.kill("SIGKILL");
	await once(python, "exit");
	t.notOk(isListening(path));
	t.throws(() => new MessageSocket(path, () => undefined), { code: "ECONNREFUSED" });
	t.throws(() => new MessageSocket(`${path}.no`, () => undefined), { code: "ENOENT" });
});
