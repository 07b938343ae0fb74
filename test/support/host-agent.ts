/** The guest agent on this machine, for tests of what the host asks of it. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync } from "node:fs";
import { createConnection } from "node:net";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { AgentClient } from "../../shim/agent/client.ts";
import { Log } from "../../shim/base/log.ts";
import { TtrpcClient } from "../../shim/wire/client.ts";
import { distShareDir } from "./paths.ts";
import { eventually } from "./retry.ts";

const log = new Log(() => undefined);
const agentProgram = join(dirname(realpathSync(join(distShareDir, "initramfs"))), "snp-agent");

/** An agent, and the folder of its sockets and files. */
export interface Bed {
	readonly agent: AgentClient;
	readonly folder: string;
	/** Where the agent keeps what the host brings. */
	readonly runDir: string;
}

/** Starts the guest agent in its host mode (guest/agent/README.md): no VM, but real files and processes. It ends with the test. */
export async function startAgent(t: Tap): Promise<Bed> {
	const folder = mkdtempSync(join(tmpdir(), "snp-calls-"));
	const address = join(folder, "agent.sock");
	const cgroups = cgroup2();
	mkdirSync(join(folder, "run"));
	const args = [
		"--cgroup-root",
		cgroups,
		"--listen",
		`unix://${address}`,
		"--streams",
		`unix://${join(folder, "streams.sock")}`,
		"--run-dir",
		join(folder, "run"),
	];
	const child = spawn(agentProgram, args, { stdio: "ignore" });
	const ended = new Promise((resolve) => child.once("exit", resolve));
	const socket = await eventually("the agent's socket", 10_000, () => connected(address));
	const agent = new AgentClient(new TtrpcClient(socket, { name: "the agent", log }), 30_000);
	t.teardown(async () => {
		agent.close();
		child.kill("SIGTERM");
		await ended;
		rmSync(folder, { recursive: true, force: true });
	});
	await agent.check();
	return { agent, folder, runDir: join(folder, "run") };
}

/** A connection; throws when nobody listens yet. */
async function connected(path: string): Promise<Socket> {
	const socket = createConnection(path);
	await once(socket, "connect");
	return socket;
}

/** Where cgroup2 is mounted (proc(5), mountinfo: the fifth field is the place, the type follows the dash). */
function cgroup2(): string {
	const line = readFileSync("/proc/self/mountinfo", "utf8")
		.split("\n")
		.find((entry) => entry.split(" - ")[1]?.startsWith("cgroup2 ") === true);
	const place = line?.split(" ")[4];
	if (place === undefined) throw new Error("cgroup2 is not mounted on this machine: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified");
	return place;
}

/** What this needs of tap's test object. */
export interface Tap {
	teardown(release: () => Promise<void>): void;
}
