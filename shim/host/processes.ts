/** Processes of the host, held by pidfd: a handle means one process for ever, and its end is an event. */

import { existsSync, readdirSync, readFileSync, readlinkSync, realpathSync, writeFileSync } from "node:fs";
import { constants } from "node:os";

import { closeFd } from "../../native/src/file.ts";
import { pidfdOpen, pidfdSendSignal, pidfdWatch } from "../../native/src/process.ts";
import { childEnd } from "../../native/src/spawn.ts";
import type { ChildEnd, Spawned } from "../../native/src/spawn.ts";
import { deferred, withDeadline } from "../base/deadline.ts";
import { errnoOf } from "../base/errors.ts";

/** A process that was found by its command line. */
export interface FoundProcess {
	readonly pid: number;
	readonly startTime: bigint;
	readonly args: readonly string[];
}

/** How a wait is bounded. */
export interface WaitOptions {
	readonly timeoutMs: number;
	readonly signal?: AbortSignal | undefined;
}

/**
 * When a process started, in clock ticks since the host's boot (field 22 of `/proc/<pid>/stat`, proc(5)): with the pid it names a process for ever.
 * @returns undefined when there is no such process
 */
export function startTimeOf(pid: number): bigint | undefined {
	return statusOf(pid)?.startTime;
}

/**
 * Sets how readily the kernel kills a process when memory runs out (proc(5), oom_score_adj: -1000 never .. 1000 first).
 * A process that is gone, or a value that may not be lowered, is left as it is.
 */
export function setOomScore(pid: number, score: number): void {
	try {
		writeFileSync(`/proc/${pid}/oom_score_adj`, String(score));
	} catch (error) {
		if (errnoOf(error) !== "ENOENT" && errnoOf(error) !== "EACCES" && errnoOf(error) !== "ESRCH") throw error;
	}
}

/** Where a process works; empty when it can't be told. */
function workingDirectory(pid: string): string {
	try {
		return readlinkSync(`/proc/${pid}/cwd`);
	} catch {
		return "";
	}
}

interface Status {
	readonly startTime: bigint;
	/** Ended, but not waited for by its parent yet. */
	readonly zombie: boolean;
}

function statusOf(pid: number): Status | undefined {
	const stat = readProc(`/proc/${pid}/stat`);
	// The second field is the program's name in parentheses and may itself hold spaces and parentheses; the state is the third.
	const fields = stat?.slice(stat.lastIndexOf(")") + 2).split(" ");
	const ticks = fields?.[19];
	return ticks === undefined ? undefined : { startTime: BigInt(ticks), zombie: fields?.[0] === "Z" };
}

/**
 * Finds the processes that work in `folder` and have `argument` among their arguments: after a crash, the VMM that was started there.
 * Neither alone is enough: somebody may look around in the folder. Processes that end meanwhile are left out.
 */
export function findProcesses(folder: string, argument: string): FoundProcess[] {
	const found: FoundProcess[] = [];
	if (!existsSync(folder)) return found;
	const place = realpathSync(folder);
	for (const name of readdirSync("/proc")) {
		if (!/^[0-9]+$/.test(name)) continue;
		const pid = Number(name);
		const args = readProc(`/proc/${name}/cmdline`)?.split("\0").slice(0, -1) ?? [];
		if (pid === process.pid) continue;
		if (!args.includes(argument) || workingDirectory(name) !== place) continue;
		const startTime = startTimeOf(pid);
		if (startTime !== undefined) found.push({ pid, startTime, args });
	}
	return found;
}

function readProc(path: string): string | undefined {
	try {
		return readFileSync(path, "utf8");
	} catch (error) {
		if (errnoOf(error) === "ENOENT" || errnoOf(error) === "ESRCH") return undefined;
		throw error;
	}
}

/**
 * Waits for a child that has ended, or was killed, and tells how: neither by a code nor by a signal when somebody else has waited for it. One that is traced
 * can be waited for when its tracer has let it go, of which no event tells.
 */
function collect(pid: number, told: (end: ChildEnd) => void): void {
	try {
		told(childEnd(pid));
	} catch (error) {
		if (errnoOf(error) === "EAGAIN") setTimeout(() => collect(pid, told), COLLECT_MS).unref();
		else told({ code: undefined, signal: undefined });
	}
}

const COLLECT_MS = 100;

/** A held process. Whoever opens it closes it. */
export class ProcessHandle {
	readonly pid: number;
	/** See `startTimeOf`. */
	readonly startTime: bigint;
	readonly #exited = deferred<void>();
	#pidfd: number | undefined;
	#unwatch: () => void = () => undefined;
	#ended = false;

	private constructor(pid: number, startTime: bigint, pidfd: number) {
		this.pid = pid;
		this.startTime = startTime;
		this.#pidfd = pidfd;
	}

	/**
	 * Opens a process.
	 * @param startTime when it is given, only a running process that started then counts: another one has got its number. Without it, one's own child counts
	 * until it has been waited for
	 * @returns undefined when there is no such process
	 * @throws SystemError when the host refuses (EMFILE)
	 */
	static open(pid: number, startTime?: bigint): ProcessHandle | undefined {
		let pidfd: number;
		try {
			pidfd = pidfdOpen(pid);
		} catch (error) {
			// EINVAL: the number belongs to a thread, so the process is gone.
			if (errnoOf(error) === "ESRCH" || errnoOf(error) === "EINVAL") return undefined;
			throw error;
		}
		// Read after opening: if the number has changed hands in between, the times differ.
		const found = statusOf(pid);
		if (found === undefined || (startTime !== undefined && (found.startTime !== startTime || found.zombie))) {
			closeFd(pidfd);
			return undefined;
		}
		const handle = new ProcessHandle(pid, found.startTime, pidfd);
		handle.#unwatch = pidfdWatch(pidfd, () => handle.#end());
		return handle;
	}

	/**
	 * Holds a process that this one has just started.
	 * @returns the handle, and how the process ended once it has: it is waited for also when the handle is closed before
	 * @throws SystemError when the host refuses (ENOMEM); the process is then killed
	 */
	static ofChild({ pid, pidfd }: Spawned): { readonly handle: ProcessHandle; readonly ended: Promise<ChildEnd> } {
		try {
			// Nobody has waited for it: it is there, if only as a zombie.
			const startTime = startTimeOf(pid);
			if (startTime === undefined) throw new Error(`process ${pid} can't be found in /proc`);
			const handle = new ProcessHandle(pid, startTime, pidfd);
			const ended = deferred<ChildEnd>();
			pidfdWatch(pidfd, () => {
				collect(pid, ended.resolve);
				handle.#end();
			});
			return { handle, ended: ended.promise };
		} catch (error) {
			try {
				pidfdSendSignal(pidfd, constants.signals.SIGKILL);
			} catch {
				// The first failure is the one to tell.
			}
			closeFd(pidfd);
			collect(pid, () => undefined);
			throw error;
		}
	}

	#end(): void {
		this.#ended = true;
		this.#exited.resolve();
	}

	/** True until the end of the process was seen. After `close` it tells the last known state. */
	alive(): boolean {
		return !this.#ended;
	}

	/** Settles when the process has ended; never, when the handle is closed before. */
	get exited(): Promise<void> {
		return this.#exited.promise;
	}

	/**
	 * Sends a signal.
	 * @returns false when the process is gone or the handle closed
	 * @throws SystemError: EPERM
	 */
	kill(signal: NodeJS.Signals): boolean {
		if (this.#pidfd === undefined) return false;
		try {
			pidfdSendSignal(this.#pidfd, constants.signals[signal]);
			return true;
		} catch (error) {
			if (errnoOf(error) === "ESRCH") return false;
			throw error;
		}
	}

	/**
	 * Waits for the end.
	 * @throws ShimError wait.deadline, wait.canceled
	 */
	waitExit(options: WaitOptions): Promise<void> {
		return withDeadline({ what: `the end of process ${this.pid}`, ...options }, () => this.#exited.promise);
	}

	/** Gives the descriptor back; the process is left alone. */
	close(): void {
		if (this.#pidfd === undefined) return;
		this.#unwatch();
		closeFd(this.#pidfd);
		this.#pidfd = undefined;
	}
}
