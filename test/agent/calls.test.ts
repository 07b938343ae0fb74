/**
 * Stdio and life cycle by the agent's calls alone, as with an agent that takes no streams, against the real agent in its host mode
 * (guest/agent/README.md): no VM, but real processes, pipes and FIFOs.
 */

import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { copyFileSync, createReadStream, createWriteStream, existsSync, mkdirSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import t from "tap";
import { guestSpec } from "../../shim/agent/guest-spec.ts";
import { parseSpec, specSchema } from "../../shim/agent/oci-spec.ts";
import { Log } from "../../shim/base/log.ts";
import { GuestProcess } from "../../shim/pod/process.ts";
import { relayByCalls } from "../../shim/pod/stdio-calls.ts";
import { startAgent } from "../support/host-agent.ts";
import type { Bed } from "../support/host-agent.ts";
import { busyboxPath } from "../support/image.ts";

const log = new Log(() => undefined);
const NAMESPACES = ["pid", "ipc", "uts", "mount", "network"].map((type) => ({ type }));

async function makeContainer({ agent, folder }: Bed, id: string, args: string[]): Promise<void> {
	const root = join(folder, "root");
	mkdirSync(join(root, "bin"), { recursive: true });
	for (const name of ["proc", "dev", "tmp"]) mkdirSync(join(root, name), { recursive: true });
	if (!existsSync(join(root, "bin/busybox"))) copyFileSync(busyboxPath(), join(root, "bin/busybox"));
	for (const applet of ["sh", "cat", "echo", "sleep", "wc"])
		if (!existsSync(join(root, "bin", applet))) symlinkSync("busybox", join(root, "bin", applet));
	const spec = parseSpec(
		specSchema,
		{
			ociVersion: "1.1.0",
			process: { args, cwd: "/", env: ["PATH=/bin"], user: { uid: 0, gid: 0 } },
			root: { path: root },
			mounts: [{ destination: "/proc", type: "proc", source: "proc" }],
			linux: { namespaces: NAMESPACES },
		},
		"a test",
	);
	const guest = guestSpec(spec, { containerId: id, podPid: 0, sandbox: false, seccomp: false, limits: false, guestSources: new Map() });
	await agent.createContainer({
		container_id: id,
		exec_id: id,
		OCI: { ...guest, Root: { Path: root, Readonly: false } },
		sandbox_pidns: false,
	});
}

function fifo(folder: string, name: string): string {
	const path = join(folder, name);
	execFileSync("mkfifo", [path]);
	return path;
}

t.test("the agent tells what it can do", async (t) => {
	const { agent } = await startAgent(t);
	const { details, bootTimes } = await agent.details();
	t.equal(details.streams, true);
	t.equal(details.seccomp, true);
	t.equal(bootTimes, undefined, "it did not boot this machine");
});

t.test("stdio by calls: 4 MiB go in and come back bit for bit, standard error apart, and the exit code is told", async (t) => {
	const bed = await startAgent(t);
	const { agent, folder } = bed;
	const stdio = { stdin: fifo(folder, "in"), stdout: fifo(folder, "out"), stderr: fifo(folder, "err"), terminal: false };
	const process = new GuestProcess("c1", "", stdio);
	const input = randomBytes(4 * 1024 * 1024);
	const hash = createHash("sha256");
	const errors: Buffer[] = [];
	// Readers first: what they open for reading is the FIFO that the relay then writes.
	const readers = Promise.all([
		pipeline(createReadStream(stdio.stdout), async (source: AsyncIterable<Buffer>) => {
			let left = input.length;
			for await (const chunk of source) {
				hash.update(chunk);
				left -= chunk.length;
				if (left <= 0) return;
			}
		}),
		pipeline(createReadStream(stdio.stderr), async (source: AsyncIterable<Buffer>) => {
			for await (const chunk of source) {
				errors.push(chunk);
				if (Buffer.concat(errors).toString().endsWith("\n")) return;
			}
		}),
	]);
	await makeContainer(bed, "c1", ["sh", "-c", "echo apart >&2; cat; exit 42"]);
	const relay = relayByCalls(process, agent, log);
	process.transition({ kind: "starting" });
	await agent.startContainer("c1");
	process.transition({ kind: "running" });
	const writer = createWriteStream(stdio.stdin);
	await new Promise<void>((resolve, reject) => writer.end(input, () => resolve()).once("error", reject));
	// Only then is the end asked for: some agents forget the process, and its output, with the answer.
	await relay.outputRead;
	await readers;
	t.equal(await agent.waitProcess({ containerId: "c1", execId: "" }), 42);
	await relay.drain(10_000);
	t.equal(hash.digest("hex"), createHash("sha256").update(input).digest("hex"));
	t.equal(Buffer.concat(errors).toString(), "apart\n");
	await agent.removeContainer("c1");
});

t.test("stdio by calls: what was written before standard input is closed arrives, though the writer stays", async (t) => {
	const bed = await startAgent(t);
	const { agent, folder } = bed;
	const process = new GuestProcess("c1", "", { stdin: fifo(folder, "in"), stdout: fifo(folder, "out"), stderr: "", terminal: false });
	const output = createReadStream(process.stdio.stdout);
	await makeContainer(bed, "c1", ["sh", "-c", "sleep 0.2; wc -c"]);
	const relay = relayByCalls(process, agent, log);
	process.transition({ kind: "starting" });
	await agent.startContainer("c1");
	process.transition({ kind: "running" });
	const writer = createWriteStream(process.stdio.stdin);
	await new Promise<void>((resolve, reject) => writer.write(randomBytes(1024 * 1024), (error) => (error ? reject(error) : resolve())));
	relay.closeStdin();
	t.equal(String((await once(output, "data"))[0]).trim(), String(1024 * 1024));
	t.equal(await agent.waitProcess({ containerId: "c1", execId: "" }), 0);
	await relay.drain(10_000);
	writer.destroy();
	output.destroy();
	await agent.removeContainer("c1");
});

t.test("a missing command is refused by name when the container is made, and a container that is not there is told as such", async (t) => {
	const bed = await startAgent(t);
	await t.rejects(makeContainer(bed, "c1", ["no-such-command"]), { message: /no-such-command/ });
	await t.rejects(bed.agent.startContainer("c9"), { code: "not-found" });
	await t.rejects(bed.agent.removeContainer("c9"), { code: "not-found" });
});

t.test("a killed process has 137, and waiting for it again answers the same", async (t) => {
	const bed = await startAgent(t);
	await makeContainer(bed, "c1", ["sleep", "1000"]);
	await bed.agent.startContainer("c1");
	const waiting = bed.agent.waitProcess({ containerId: "c1", execId: "" });
	await bed.agent.signalProcess({ containerId: "c1", execId: "" }, 9);
	t.equal(await waiting, 137);
	t.equal(await bed.agent.waitProcess({ containerId: "c1", execId: "" }), 137);
	await bed.agent.removeContainer("c1");
});

t.test("what a program needs and what is set up before it have remedies of their own", async (t) => {
	const bed = await startAgent(t);
	const { agent } = bed;
	await makeContainer(bed, "c1", ["sleep", "1000"]);
	await agent.startContainer("c1");
	const failure = async (Args: string[], Cwd: string): Promise<unknown> =>
		await agent
			.execProcess({ container_id: "c1", exec_id: "e", process: { Args, Cwd, Env: ["PATH=/bin"] } })
			.catch((error: unknown) => error);
	t.match(await failure(["sh"], "not/absolute"), { remedy: /absolute path/ });
	t.match(await failure(["not-there"], "/"), { remedy: /image's PATH/ });
	t.match(await failure(["sh", "-c", "true", "x".repeat(200_000)], "/"), { remedy: /128 KiB/ });
	await agent.removeContainer("c1");
});
