/**
 * Stdio by the agent's calls, for agents that take no streams: a read call waits in the guest for output, which goes to containerd's
 * FIFO; what containerd writes goes in by write calls. Bytes under way are lost when snpd dies: streams are the better way.
 */

import { constants, openSync } from "node:fs";
import { Socket } from "node:net";

import type { AgentClient } from "../agent/client.ts";
import { ShimError } from "../base/errors.ts";
import { deferred, withDeadline } from "../base/deadline.ts";
import type { Log } from "../base/log.ts";
import type { GuestProcess } from "./process.ts";
import type { ProcessStdio } from "./stdio.ts";

const READ_BYTES = 32 * 1024;

/** Starts to move a process's stdio by calls. The process need not have started: the calls begin with `start`, which `opened` triggers. */
export function relayByCalls(process: GuestProcess, agent: AgentClient, log: Log): ProcessStdio {
	const end = new AbortController();
	const { stdin, stdout, stderr, terminal } = process.stdio;
	const outputs: Promise<void>[] = [];
	const begin = deferred<undefined>();
	const relay = (path: string, stream: "stdout" | "stderr"): void => {
		if (path === "") return;
		const fifo = openOutput(path);
		const work = begin.promise.then(() => pumpOutput(process, agent, stream, fifo, end.signal));
		work.catch((error: unknown) => log.error("relaying output by calls failed", error, { stream })).finally(() => fifo.destroy());
		outputs.push(work);
	};
	relay(stdout, "stdout");
	if (!terminal) relay(stderr, "stderr");
	let input: Socket | undefined;
	if (stdin !== "") {
		input = new Socket({ fd: openSync(stdin, constants.O_RDONLY | constants.O_NONBLOCK), readable: true, writable: false });
		const source = input;
		begin.promise
			.then(() => pumpInput(process, agent, source, end.signal))
			.catch((error: unknown) => log.error("relaying input by calls failed", error))
			.finally(() => source.destroy());
	}
	process.whenRunning(() => begin.resolve(undefined));
	return {
		opened: Promise.resolve(),
		closeStdin: () => {
			input?.push(null);
		},
		drain: async (timeoutMs) => {
			try {
				await withDeadline({ what: `the output of ${process.name}`, timeoutMs }, () => Promise.all(outputs));
			} finally {
				end.abort();
				input?.destroy();
			}
		},
		abort: () => {
			begin.reject(new ShimError("wait.canceled", `${process.name}: stdio given up`));
			end.abort();
			input?.destroy();
		},
	};
}

/** Opened for reading too, so that a restart of containerd ends nothing (as containerd's own shims do). */
function openOutput(path: string): Socket {
	const file = path.startsWith("file://") ? path.slice("file://".length) : undefined;
	const flags = file === undefined ? constants.O_RDWR | constants.O_NONBLOCK : constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT;
	return new Socket({ fd: openSync(file ?? path, flags, 0o600), readable: false, writable: true });
}

async function pumpOutput(
	process: GuestProcess,
	agent: AgentClient,
	stream: "stdout" | "stderr",
	fifo: Socket,
	signal: AbortSignal,
): Promise<void> {
	for (;;) {
		const data = await agent.readOutput(process, stream, READ_BYTES, { signal });
		if (data.length === 0) return;
		await new Promise<void>((resolve, reject) => fifo.write(data, (error) => (error ? reject(error) : resolve())));
	}
}

async function pumpInput(process: GuestProcess, agent: AgentClient, source: Socket, signal: AbortSignal): Promise<void> {
	for await (const chunk of source) {
		let rest = chunk as Uint8Array;
		while (rest.length > 0) rest = rest.subarray(await agent.writeStdin(process, rest, { signal }));
	}
	await agent.closeStdin(process, { signal });
}
