/** Joining control groups, off the main thread. */

import { addon, checked, MAX_INT, plain, SystemError, whole } from "./load.ts";

/** One mounted hierarchy (cgroups(7)). */
export interface JoinedHierarchy {
	readonly root: string;
	/** Of version 2: its groups hand controllers down. */
	readonly second: boolean;
	/** Of version 1, with cpusets: a new group is empty until it has its parent's. */
	readonly cpuset: boolean;
}

/** Processes could not be brought into a group. */
export class JoinError extends SystemError {
	/** The group's folder. */
	readonly folder: string;

	constructor(errno: number, folder: string) {
		super(errno, "cgroup", folder);
		this.folder = folder;
	}
}

/**
 * Makes a group, with all above it, in each hierarchy, and moves processes with all their threads there; stops at the first failure. A process that is
 * gone is none.
 * @param path of the group below the hierarchies' roots, with a leading slash
 * @throws JoinError
 */
export async function cgroupJoin(hierarchies: readonly JoinedHierarchy[], path: string, pids: readonly number[]): Promise<void> {
	const result = await addon().cgroupJoin(
		hierarchies.map(({ root }) => plain(root, "root")),
		hierarchies.map(({ second }) => second),
		hierarchies.map(({ cpuset }) => cpuset),
		plain(path, "path"),
		pids.map((pid) => whole(pid, "pid", 1, MAX_INT)),
	);
	if (typeof result === "number") return void checked(result, "cgroup", path);
	const [errno = 0, index = 0] = result;
	if (errno !== 0) throw new JoinError(-errno, `${hierarchies[index]?.root ?? ""}${path}`);
}
