/** Programs that this process starts, and that outlive it. */

import { constants } from "node:os";

import { spawnProgram } from "../../native/src/spawn.ts";
import type { HostCgroup } from "./cgroups.ts";
import { ProcessHandle } from "./processes.ts";

/** How a program is started: with an empty environment, in a session of its own. */
export interface ProgramOptions {
	/** Its path. */
	readonly program: string;
	/** Without the program's name. */
	readonly args: readonly string[];
	/** Where it works. */
	readonly folder: string;
	/** Its descriptors, 0 and up; "null" is the null device. It has no others. The caller may close its own as soon as the call has returned its promise. */
	readonly descriptors: readonly (number | "null")[];
	/** The group that it is in from the start, made where it is missing; undefined: this process's. */
	readonly cgroup: HostCgroup | undefined;
	/** How readily the kernel ends it when memory runs out (proc(5), oom_score_adj: -1000 never .. 1000 first); one that may not be lowered is left as it is. */
	readonly oomScore: number;
}

/** How a program ended: with a code, or by a signal. */
export interface ProgramEnd {
	readonly code: number | undefined;
	readonly signal: NodeJS.Signals | undefined;
}

/** A program that was started. It does not keep this one alive. */
export interface StartedProgram {
	/** The caller closes it. */
	readonly handle: ProcessHandle;
	/** Settles when it has ended, whether the handle is open or not; never rejects. */
	readonly ended: Promise<ProgramEnd>;
}

/**
 * Starts a program. Another process looks for it by its arguments and its folder as soon as it can run on without this one.
 * @throws ShimError `host.cgroup` when its group can't be entered; SystemError whose `syscall` is `execve` when the program can't be run
 */
export async function startProgram({ program, args, folder, descriptors, cgroup, oomScore }: ProgramOptions): Promise<StartedProgram> {
	const numbers = descriptors.map((fd) => (fd === "null" ? -1 : fd));
	const request = { program, args, folder, descriptors: numbers, oomScore, group: cgroup?.entrance };
	const spawned = await spawnProgram(request).catch((error: unknown): never => {
		throw cgroup?.failure(error) ?? error;
	});
	const { handle, ended } = ProcessHandle.ofChild(spawned);
	cgroup?.entered();
	return { handle, ended: ended.then(({ code, signal }) => ({ code, signal: signal === undefined ? undefined : signalName(signal) })) };
}

const NAMES = new Map(Object.entries(constants.signals).map(([name, number]) => [number, name as NodeJS.Signals]));

/** A signal's name; SIGKILL for one that has none (the real-time ones). */
const signalName = (number: number): NodeJS.Signals => NAMES.get(number) ?? "SIGKILL";
