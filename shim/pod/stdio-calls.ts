/**
 * Stdio by the agent's calls, for agents that take no streams: a read call waits in the guest for output, which goes to containerd's
 * FIFO; what containerd writes goes in by write calls. Bytes under way are lost when snpd dies: streams are the better way.
 */

import { constants, openSync, readSync } from "node:fs";
import { Socket } from "node:net";

import type { AgentClient } from "../agent/client.ts";
import { errnoOf, ShimError } from "../base/errors.ts";
import { deferred, withDeadline } from "../base/deadline.ts";
import type { Log } from "../base/log.ts";
import type { GuestProcess } from "./process.ts";
import type { ProcessStdio } from "./stdio.ts";

const READ_BYTES = 32 * 1024;
/** How long the output of a killed process may still be read before its end is asked for. */
const KILLED_READ_MS = 5_000;

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
	const input = stdin === "" ? undefined : new InputFifo(stdin);
	if (input !== undefined) {
		begin.promise
			.then(() => pumpInput(process, agent, input, end.signal))
			.catch((error: unknown) => log.error("relaying input by calls failed", error))
			.finally(() => input.destroy());
	}
	process.whenRunning(() => begin.resolve(undefined));
	const read = deferred<void>();
	void Promise.allSettled(outputs).then(() => read.resolve());
	return {
		opened: Promise.resolve(),
		outputRead: read.promise,
		// A reader that never reads must not hide the end of a process that was killed.
		hurry: () => void setTimeout(() => read.resolve(), KILLED_READ_MS).unref(),
		closeStdin: () => input?.close(),
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

async function pumpInput(process: GuestProcess, agent: AgentClient, source: InputFifo, signal: AbortSignal): Promise<void> {
	for (;;) {
		const chunk = await source.read();
		if (chunk === undefined) break;
		let rest = chunk;
		while (rest.length > 0) rest = rest.subarray(await agent.writeStdin(process, rest, { signal }));
	}
	await agent.closeStdin(process, { signal });
}

/** A FIFO that is read until its last writer is gone, or, once it is closed from this side, until it is empty. */
class InputFifo {
	readonly #fd: number;
	readonly #socket: Socket;
	#closed = false;
	#ended = false;
	#wake: () => void = () => undefined;

	constructor(path: string) {
		this.#fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
		this.#socket = new Socket({ fd: this.#fd, readable: true, writable: false });
		const end = (): void => {
			this.#ended = true;
			this.#wake();
		};
		this.#socket
			.on("readable", () => this.#wake())
			.on("end", end)
			.on("error", end)
			.on("close", end);
	}

	/** The next bytes; undefined at the end. One call at a time. */
	async read(): Promise<Uint8Array | undefined> {
		for (;;) {
			const chunk = (this.#socket.read() as Buffer | null) ?? (this.#closed && !this.#ended ? this.#rest() : undefined);
			if (chunk !== undefined) return chunk;
			if (this.#closed || this.#ended) return undefined;
			await new Promise<void>((resolve) => {
				this.#wake = resolve;
			});
		}
	}

	/** What was written before is still read. */
	close(): void {
		this.#closed = true;
		this.#wake();
	}

	destroy(): void {
		this.#socket.destroy();
	}

	/** What the FIFO holds beyond what the socket has read; undefined when it is empty. */
	#rest(): Uint8Array | undefined {
		const buffer = Buffer.alloc(READ_BYTES);
		try {
			const count = readSync(this.#fd, buffer);
			return count === 0 ? undefined : buffer.subarray(0, count);
		} catch (error) {
			if (errnoOf(error) === "EAGAIN") return undefined;
			throw error;
		}
	}
}
