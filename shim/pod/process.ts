/**
 * The life of one process in the guest: a container's first one or an exec. A tagged union of states, each with the data that only it
 * has, and one function that allows or refuses a change.
 */

import { ShimError } from "../base/errors.ts";
import { deferred } from "../base/deadline.ts";
import type { Deferred } from "../base/deadline.ts";

export const SIGKILL = 9;
/** What a killed process's exit status is made of (as shells and runc do). */
export const SIGNAL_EXIT_BASE = 128;

/** How a process ended. */
export interface ExitRecord {
	/** 0..255; 128 + signal number when a signal ended it. */
	readonly status: number;
	/** Wall-clock time, milliseconds since 1970. */
	readonly atMs: number;
}

/** The states of a process, in their order. */
export type ProcessState =
	| { readonly kind: "created" }
	| { readonly kind: "starting" }
	| { readonly kind: "running" }
	| { readonly kind: "stopped"; readonly exit: ExitRecord };

/** Which state may follow which. `starting` falls back to `created` when the start failed. */
const NEXT: Readonly<Record<ProcessState["kind"], readonly ProcessState["kind"][]>> = {
	created: ["starting", "stopped"],
	starting: ["running", "created", "stopped"],
	running: ["stopped"],
	stopped: [],
};

/** Where containerd wants a process's stdio: paths of FIFOs or URIs, empty for none. */
export interface Stdio {
	readonly stdin: string;
	readonly stdout: string;
	readonly stderr: string;
	readonly terminal: boolean;
}

/** Numbers of a process's streams, 0 for none. The same number is the keeper's channel and the agent's token. */
export interface StreamNumbers {
	readonly stdin: number;
	readonly stdout: number;
	readonly stderr: number;
}

export const NO_STREAMS: StreamNumbers = { stdin: 0, stdout: 0, stderr: 0 };

/** A process with its state and the promise of its end. */
export class GuestProcess {
	readonly containerId: string;
	/** Empty for the container's first process. */
	readonly execId: string;
	readonly stdio: Stdio;
	streams: StreamNumbers = NO_STREAMS;
	/** The terminal's size to start with, when it was told before the start. */
	size: { columns: number; rows: number } | undefined;
	/** True when containerd closed standard input before there was a stream for it. */
	stdinClosed = false;
	/** True when containerd has sent SIGKILL to it, or its VM has ended. */
	killed = false;
	/** True once the guest has told how it ended, or the VM has: its last output may still be on its way. */
	endKnown = false;
	#state: ProcessState = { kind: "created" };
	readonly #exited: Deferred<ExitRecord> = deferred();
	#onRunning: (() => void)[] = [];

	constructor(containerId: string, execId: string, stdio: Stdio) {
		this.containerId = containerId;
		this.execId = execId;
		this.stdio = stdio;
	}

	/** What messages call it. */
	get name(): string {
		return this.execId === "" ? `container ${this.containerId}` : `exec ${this.execId} of container ${this.containerId}`;
	}

	get state(): ProcessState {
		return this.#state;
	}

	/** Settles when the process has stopped. */
	get exited(): Promise<ExitRecord> {
		return this.#exited.promise;
	}

	/** The exit record of a stopped process. */
	get exit(): ExitRecord | undefined {
		return this.#state.kind === "stopped" ? this.#state.exit : undefined;
	}

	/**
	 * Changes the state.
	 * @throws ShimError `process.state` when the change is not allowed
	 */
	transition(next: ProcessState): void {
		if (!NEXT[this.#state.kind].includes(next.kind)) {
			throw new ShimError("process.state", `${this.name} is ${this.#state.kind}: it can't become ${next.kind}`);
		}
		this.#enter(next);
	}

	/** Runs `action` once the process runs; at once when it does already, never when it stops before. */
	whenRunning(action: () => void): void {
		if (this.#state.kind === "running") action();
		else this.#onRunning.push(action);
	}

	/** Puts back a state that the journal holds, without asking whether it may follow. */
	restore(state: ProcessState): void {
		this.#enter(state);
	}

	#enter(state: ProcessState): void {
		this.#state = state;
		if (state.kind === "stopped") this.#exited.resolve(state.exit);
		if (state.kind !== "running" && state.kind !== "stopped") return;
		const actions = this.#onRunning;
		this.#onRunning = [];
		if (state.kind === "running") for (const action of actions) action();
	}

	/** @throws ShimError `process.state` unless the process is in one of the states */
	require(kinds: readonly ProcessState["kind"][], attempt: string): void {
		if (!kinds.includes(this.#state.kind)) {
			throw new ShimError("process.state", `${attempt}: ${this.name} is ${this.#state.kind}, not ${kinds.join(" or ")}`);
		}
	}
}
