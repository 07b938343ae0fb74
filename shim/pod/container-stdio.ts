/** The stdio of a container's processes, while there is something to move for them. */

import { withDeadline } from "../base/deadline.ts";
import { raceLasting } from "../base/lasting.ts";
import type { ContainerHost } from "./container-host.ts";
import type { Machine } from "./machine.ts";
import type { GuestProcess } from "./process.ts";
import { adoptStdio, openStdio } from "./stdio.ts";
import type { ProcessStdio, StdioContext } from "./stdio.ts";

/** How long a keeper may take to come back to a new snpd (it tries every 2 s at least), before its processes' ends are told without it. */
const KEEPER_RETURN_MS = 10_000;

/** The stdio of one container's processes, by exec id. */
export class ContainerStdio {
	readonly #host: ContainerHost;
	readonly #open = new Map<string, ProcessStdio>();

	constructor(host: ContainerHost) {
		this.#host = host;
	}

	/**
	 * Opens a process's stdio while the guest makes the process: each waits for the other there.
	 * @throws ShimError what either throws; the stdio is given up then
	 */
	async openWhile(process: GuestProcess, create: () => Promise<void>): Promise<void> {
		const stdio = openStdio(process, this.#context());
		this.#open.set(process.execId, stdio);
		try {
			const death = await raceLasting(
				Promise.all([create(), stdio.opened]).then(() => undefined),
				this.#host.machine().died,
			);
			if (death !== undefined) throw death;
		} catch (error) {
			stdio.abort();
			this.#open.delete(process.execId);
			throw error;
		}
	}

	/**
	 * Adopts the stdio of a process that an earlier snpd, or this one, started; called when the keeper has come back. What a stopped process has left is
	 * the keeper's until Delete: by streams alone, calls end with their process.
	 */
	adopt(process: GuestProcess): void {
		const { streams } = this.#host.machine().details;
		const busy = this.#open.has(process.execId) && (!streams || process.state.kind === "starting");
		if (busy || (process.state.kind === "stopped" && !streams)) return;
		if (process.execId !== "" && process.state.kind === "created") return;
		this.#open.set(process.execId, adoptStdio(process, this.#context()));
	}

	/** Ends standard input after what containerd has written so far. */
	closeStdin(process: GuestProcess): void {
		this.#open.get(process.execId)?.closeStdin();
	}

	/** From now on nobody waits long for the reader of this process's last output. */
	hurry(process: GuestProcess): void {
		process.killed = true;
		this.#open.get(process.execId)?.hurry?.();
	}

	/** Gives up what a process never used. */
	abort(process: GuestProcess): void {
		this.#open.get(process.execId)?.abort();
	}

	/** Gives a process's stdio away. Last output belongs to its reader, however slow it is; of a process that never ran there is none. */
	release(process: GuestProcess): void {
		const stdio = this.#open.get(process.execId);
		this.#open.delete(process.execId);
		const ran = process.state.kind === "running" || process.state.kind === "stopped";
		if (ran && stdio?.linger !== undefined) stdio.linger();
		else stdio?.abort();
	}

	/** Settles when the guest may be asked how a process ended. Never rejects. */
	outputRead(process: GuestProcess): Promise<void> {
		return this.#open.get(process.execId)?.outputRead ?? Promise.resolve();
	}

	/**
	 * Waits until the output of a process that has ended is where its reader gets it.
	 * @throws ShimError when that takes too long or fails; output then goes on
	 */
	async drain(process: GuestProcess, machine: Machine): Promise<void> {
		if (machine.details.streams && !this.#open.has(process.execId)) await this.#keeperReturns(machine);
		await this.#open.get(process.execId)?.drain(this.#host.config.timeouts.stdio_drain_ms);
	}

	/** A new snpd may hear of an end before it knows the streams. */
	async #keeperReturns(machine: Machine): Promise<void> {
		await withDeadline({ what: "the pod's keeper", timeoutMs: KEEPER_RETURN_MS }, () => raceLasting(this.#host.keeperHere(), machine.died));
	}

	#context(): StdioContext {
		const machine = this.#host.machine();
		return { agent: machine.agent, mover: this.#host.mover(), vsock: machine.vsock, streams: machine.details.streams, log: this.#host.log };
	}
}

/** The numbers of a process's streams as the agent's request carries them; none for an agent that takes no streams. */
export function streamPorts(process: GuestProcess, machine: Machine): { stdin_port?: number; stdout_port?: number; stderr_port?: number } {
	if (!machine.details.streams) return {};
	return { stdin_port: process.streams.stdin, stdout_port: process.streams.stdout, stderr_port: process.streams.stderr };
}
