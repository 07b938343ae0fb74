/** A running VMM process: its API, its events, its end. Made by `launchVmm` and `adoptVmm`. */

import { join } from "node:path";

import { withDeadline } from "../base/deadline.ts";
import { messageOf, ShimError } from "../base/errors.ts";
import type { ProcessHandle } from "../host/processes.ts";
import { VmmClient } from "./client.ts";
import { boundLog, logTail } from "./vmm-log.ts";

/** How a VMM ended. Code and signal are unknown for a process that this one did not start. */
export interface VmmExit {
	readonly code: number | undefined;
	readonly signal: NodeJS.Signals | undefined;
	/** For people: `ended with exit code 1`. */
	readonly text: string;
}

/** What a VMM's folder holds. */
export interface VmmFiles {
	readonly apiSocket: string;
	readonly events: string;
	readonly log: string;
}

/** The files of a VMM in its folder. */
export function vmmFiles(folder: string): VmmFiles {
	return { apiSocket: join(folder, "api.sock"), events: join(folder, "events"), log: join(folder, "vmm.log") };
}

const KILL_TIMEOUT_MS = 10_000;
/** How long after a lost connection the end of the process is still taken for its cause. */
const LOST_TO_EXIT_MS = 1000;

/** See `launchVmm`. */
export class Vmm {
	readonly pid: number;
	/** With the pid this names the process for ever: see `startTimeOf` in `host/processes.ts`. */
	readonly startTime: bigint;
	#folder: string;
	/** A call on a VMM that is gone fails with ShimError `vmm.exited`, which has how it ended and the end of its log. */
	readonly client: VmmClient;
	/** Settles when the process has ended; never rejects. */
	readonly exited: Promise<VmmExit>;
	readonly #process: ProcessHandle;
	readonly #stop: readonly (() => void)[];
	#stopLog: () => void;

	/**
	 * @param stop what to stop when the process has ended or is given up
	 * @throws Error when its log is not there
	 */
	constructor(folder: string, process: ProcessHandle, exited: Promise<VmmExit>, stop: readonly (() => void)[]) {
		this.pid = process.pid;
		this.startTime = process.startTime;
		this.#folder = folder;
		this.#stopLog = boundLog(vmmFiles(folder).log);
		this.#process = process;
		this.#stop = stop;
		this.client = new VmmClient(vmmFiles(folder).apiSocket, { onLost: (endpoint, lost) => this.#explain(endpoint, lost) });
		this.exited = exited;
		void exited.then(() => this.detach());
	}

	/** Where its files are. */
	get folder(): string {
		return this.#folder;
	}

	/** Its folder was renamed: the VMM has all of it open and works on, and its files are looked for there from now on. */
	moveTo(folder: string): void {
		this.#folder = folder;
		const files = vmmFiles(folder);
		this.client.moveTo(files.apiSocket);
		this.#stopLog();
		this.#stopLog = boundLog(files.log);
	}

	/**
	 * Kills the process at once and waits for its end. Does nothing more when it has ended.
	 * @throws ShimError wait.deadline after ten seconds (a process in an uninterruptible state)
	 */
	async kill(): Promise<VmmExit> {
		this.#process.kill("SIGKILL");
		return withDeadline({ what: `the end of the hypervisor (process ${this.pid})`, timeoutMs: KILL_TIMEOUT_MS }, () => this.exited);
	}

	/** Gives up descriptors and watches and leaves the process alone; `exited` of an adopted VMM then never settles. */
	detach(): void {
		this.client.close();
		for (const stop of this.#stop) stop();
		this.#stopLog();
		this.#process.close();
	}

	/**
	 * What to do about an end of the process, when that is more precise than the catalogue's remedy: a program that gives up before its API has answered
	 * once is most likely the wrong one, or was called in a way that it does not know.
	 */
	remedyFor(exit: VmmExit): { readonly remedy?: string } {
		return exit.code === undefined || this.client.answered ? {} : { remedy: "check hypervisor.path, and run that program with --version" };
	}

	/** The end of the VMM's log. */
	logTail(): Promise<string> {
		return logTail(vmmFiles(this.#folder).log);
	}

	async #explain(endpoint: string, lost: Error): Promise<ShimError> {
		const exit = await withDeadline({ what: "the hypervisor's end", timeoutMs: LOST_TO_EXIT_MS }, () => this.exited).catch(() => undefined);
		if (exit === undefined)
			return new ShimError("vmm.api", `${endpoint} of the hypervisor (process ${this.pid}): ${messageOf(lost)}`, { cause: lost });
		const tail = await this.logTail();
		const log = tail === "" ? "its log is empty" : `the end of its log: ${tail}`;
		return new ShimError("vmm.exited", `the hypervisor (process ${this.pid}) ${exit.text} and did not answer ${endpoint}; ${log}`, {
			...this.remedyFor(exit),
			cause: lost,
		});
	}
}
