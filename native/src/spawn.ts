/** Programs as processes of their own, started off the main thread without a copy of this process, inside of their control groups. */

import { JoinError } from "./cgroup.ts";
import type { JoinedHierarchy } from "./cgroup.ts";
import { addon, checked, MAX_INT, plain, SystemError, whole } from "./load.ts";

/** What is started. */
export interface SpawnRequest {
	/** Its path. */
	readonly program: string;
	/** Without the program's name. */
	readonly args: readonly string[];
	/** Where it works. */
	readonly folder: string;
	/** Its standard descriptors and those after them; -1: the null device. It has no others. */
	readonly descriptors: readonly number[];
	/** How readily the kernel ends it when memory runs out (proc(5), oom_score_adj); one that may not be lowered is left as it is. */
	readonly oomScore: number;
	/** The group that it is in from its first instruction on, made where it is missing; undefined: its parent's. */
	readonly group: { readonly hierarchies: readonly JoinedHierarchy[]; readonly path: string } | undefined;
}

/** A process of this one's. */
export interface Spawned {
	readonly pid: number;
	/** Its pidfd: the caller closes it. */
	readonly pidfd: number;
}

/** How a process ended: the one or the other. */
export interface ChildEnd {
	readonly code: number | undefined;
	/** A signal's number. */
	readonly signal: number | undefined;
}

const MAX_DESCRIPTORS = 16;
const MAX_OOM_SCORE = 1000;
/** What an end by a signal is counted from. */
const SIGNAL_BASE = 256;
/** What was under way when it failed, in the addon's order. */
const STAGES = ["cgroup", "descriptors", "chdir", "execve", "clone"] as const;

/**
 * Starts a program: own session, empty environment, no signal ignored or blocked. It outlives this process.
 * @throws JoinError when a control group can't be entered; SystemError with the call that failed: `execve` for a program that can't be run
 */
export async function spawnProgram({ program, args, folder, descriptors, oomScore, group }: SpawnRequest): Promise<Spawned> {
	whole(descriptors.length, "the number of descriptors", 0, MAX_DESCRIPTORS);
	const hierarchies = group?.hierarchies ?? [];
	const result = await addon().spawn(
		plain(program, "program"),
		[program, ...args].map((argument) => plain(argument, "argument")),
		plain(folder, "folder"),
		descriptors.map((fd) => whole(fd, "descriptor", -1, MAX_INT)),
		whole(oomScore, "oomScore", -MAX_OOM_SCORE, MAX_OOM_SCORE),
		hierarchies.map(({ root }) => plain(root, "root")),
		hierarchies.map(({ second }) => second),
		hierarchies.map(({ cpuset }) => cpuset),
		plain(group?.path ?? "", "path"),
	);
	if (typeof result === "number") throw new SystemError(result, "spawn", program);
	const [pid = 0, second = 0, index = 0] = result;
	if (pid > 0) return { pid, pidfd: second };
	const stage = STAGES[second] ?? "clone";
	if (stage === "cgroup") throw new JoinError(pid, `${hierarchies[index]?.root ?? ""}${group?.path ?? ""}`);
	throw new SystemError(pid, stage, stage === "chdir" ? folder : program);
}

/**
 * How a child of this process ended. It is waited for by this, so that its number may be another's afterwards.
 * @throws SystemError: EAGAIN while it runs, ECHILD when it is no child or was waited for
 */
export function childEnd(pid: number): ChildEnd {
	const status = checked(addon().childEnd(whole(pid, "pid", 1, MAX_INT)), "waitpid", String(pid));
	return status < SIGNAL_BASE ? { code: status, signal: undefined } : { code: undefined, signal: status - SIGNAL_BASE };
}
