/**
 * A process's stdio: opened, closed and drained as one thing. With an agent that takes streams the keeper moves the bytes between
 * containerd's FIFOs and the guest; snpd sees none of them and may die meanwhile. An agent without streams is read and fed by RPC.
 */

import type { AgentClient } from "../agent/client.ts";
import { ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { STREAM_PORT } from "../base/names.ts";
import { LastOutput } from "./last-output.ts";
import type { Mover, MovedStream } from "./ports.ts";
import type { GuestProcess, StreamNumbers } from "./process.ts";
import { relayByCalls } from "./stdio-calls.ts";

/** What a process's stdio consists of while it runs. */
export interface ProcessStdio {
	/**
	 * Settles when the guest may be asked how the process ended: an agent that is read by calls forgets the process with its answer, and
	 * what was not read with it. Absent where output does not depend on the agent's calls. Never rejects.
	 */
	readonly outputRead?: Promise<void>;
	/** Settles when every stream that was asked for is connected; rejects when one can't be. */
	readonly opened: Promise<void>;
	/** Ends standard input after what containerd has written so far. */
	closeStdin(): void;
	/**
	 * Ends standard input and waits until all output has reached containerd's side: for `drainMs`, and as long as its reader goes on (`LastOutput`).
	 * @throws ShimError when it takes longer or fails; output then goes on
	 */
	drain(drainMs: number): Promise<void>;
	/** The process was killed, ended or not: `drain` waits for a reader that takes something only. */
	hurry?(): void;
	/** Leaves what is left of the output of a process that is being forgotten to its reader. Without it `abort` takes its place. */
	linger?(): void;
	/** Gives everything up at once. */
	abort(): void;
}

/** What stdio needs of the pod. */
export interface StdioContext {
	readonly agent: AgentClient;
	readonly mover: Mover;
	readonly vsock: string;
	/** The agent takes streams by token. */
	readonly streams: boolean;
	readonly log: Log;
}

/** Gives a process the numbers of its streams: one per path that containerd named. A terminal has no standard error. */
export function numberStreams(process: GuestProcess, next: () => number): StreamNumbers {
	const { stdin, stdout, stderr, terminal } = process.stdio;
	const number = (path: string): number => (path === "" ? 0 : next());
	return { stdin: number(stdin), stdout: number(stdout), stderr: terminal ? 0 : number(stderr) };
}

/**
 * Opens a process's stdio; its numbers must be in the journal already.
 * @throws ShimError `spec.unsupported` for an address that is neither a FIFO's path nor a file
 */
export function openStdio(process: GuestProcess, context: StdioContext): ProcessStdio {
	for (const address of [process.stdio.stdin, process.stdio.stdout, process.stdio.stderr]) checkAddress(process, address);
	if (!context.streams) return relayByCalls(process, context.agent, context.log);
	const { mover, vsock } = context;
	// One that is there already was opened for this very process, by an snpd that did not live to see it start.
	const open = (id: number, direction: "in" | "out", fifo: string): MovedStream | undefined =>
		id === 0 ? undefined : (mover.stream(id) ?? mover.openStream({ id, direction, fifo, vsock, port: STREAM_PORT, token: String(id) }));
	const { streams, stdio } = process;
	return new MovedStdio(process, context.log, open(streams.stdin, "in", stdio.stdin), [
		open(streams.stdout, "out", stdio.stdout),
		open(streams.stderr, "out", stdio.stderr),
	]);
}

/** Takes up the stdio of a process that an earlier snpd started: the keeper has gone on moving it. */
export function adoptStdio(process: GuestProcess, context: StdioContext): ProcessStdio {
	if (!context.streams) return relayByCalls(process, context.agent, context.log);
	const find = (id: number): MovedStream | undefined => (id === 0 ? undefined : context.mover.stream(id));
	const { streams } = process;
	return new MovedStdio(process, context.log, find(streams.stdin), [find(streams.stdout), find(streams.stderr)]);
}

/** A path, or a URI of a kind that the keeper can serve (containerd's stdio URIs). */
function checkAddress(process: GuestProcess, address: string): void {
	const scheme = /^([a-z][a-z0-9+.-]*):\/\//u.exec(address)?.[1];
	if (scheme === undefined || scheme === "file") return;
	throw new ShimError("spec.unsupported", `${process.name}: stdio by ${scheme}:// is not offered`, {
		remedy: "use FIFOs (the default) or file://",
	});
}

class MovedStdio implements ProcessStdio {
	readonly #process: GuestProcess;
	readonly #input: MovedStream | undefined;
	readonly #outputs: readonly MovedStream[];
	readonly #onHeld: () => void;
	#last: LastOutput | undefined;
	readonly opened: Promise<void>;

	constructor(process: GuestProcess, log: Log, input: MovedStream | undefined, outputs: readonly (MovedStream | undefined)[]) {
		this.#process = process;
		this.#onHeld = () => log.info("a process's end waits for the reader of its last output", { process: process.name });
		this.#input = input;
		this.#outputs = outputs.filter((stream) => stream !== undefined);
		const all = input === undefined ? this.#outputs : [input, ...this.#outputs];
		this.opened = Promise.all(all.map((stream) => stream.opened)).then(() => undefined);
		this.opened.catch(() => undefined);
		for (const stream of all) stream.done.catch(() => undefined);
		if (process.stdinClosed) input?.close("drain");
	}

	closeStdin(): void {
		this.#input?.close("drain");
	}

	async drain(drainMs: number): Promise<void> {
		this.#input?.close("abort");
		const { name, killed } = this.#process;
		this.#last = new LastOutput({ name, streams: this.#outputs, drainMs, killed, onHeld: this.#onHeld });
		await this.#last.wait();
	}

	hurry(): void {
		this.#last?.hurry();
	}

	linger(): void {
		this.#last?.giveUp();
		for (const stream of this.#outputs) stream.close("linger");
		this.#input?.close("abort");
	}

	abort(): void {
		this.#last?.giveUp();
		for (const stream of this.#outputs) stream.close("abort");
		this.#input?.close("abort");
	}
}
