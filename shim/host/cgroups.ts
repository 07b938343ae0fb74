/** Control groups of the host, of both versions side by side (cgroups(7)): a group is the same path in every hierarchy that is mounted. */

import { existsSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { rmdir } from "node:fs/promises";
import { join, posix } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

import { cgroupJoin, JoinError } from "../../native/src/cgroup.ts";
import type { JoinedHierarchy } from "../../native/src/cgroup.ts";
import { errnoOf, messageOf, ShimError } from "../base/errors.ts";

/** One mounted hierarchy. */
export interface CgroupHierarchy {
	readonly mountPoint: string;
	readonly version: 1 | 2;
	/** The controllers of a version 1 hierarchy, and mount options beside them. */
	readonly controllers: readonly string[];
}

/** A killed process leaves its group a moment after its end is seen; nothing tells when (version 1). */
const REMOVE_ATTEMPTS = 50;
const REMOVE_PAUSE_MS = 20;
/** A process that was just made may be missed once. */
const MOVE_ATTEMPTS = 10;
const NANOS_PER_MICRO = 1000;
const MOUNTINFO = "/proc/self/mountinfo";

/** The mounted hierarchies, from the text of mountinfo (proc(5)). */
export function parseHierarchies(mountinfo: string): CgroupHierarchy[] {
	return mountinfo.split("\n").flatMap((line): CgroupHierarchy[] => {
		const [front = "", back = ""] = line.split(" - ");
		const mountPoint = front.split(" ")[4];
		const [type, , options = ""] = back.split(" ");
		if (mountPoint === undefined || (type !== "cgroup" && type !== "cgroup2")) return [];
		return [{ mountPoint, version: type === "cgroup2" ? 2 : 1, controllers: options.split(",") }];
	});
}

/**
 * The path of a group below each hierarchy's root, from an OCI specification's `cgroupsPath`: a path, or systemd's form `slice:prefix:name`
 * (runc), whose slices lie in one another (systemd.slice(5)).
 * @throws ShimError `spec.invalid` for a path that leaves the hierarchy
 */
export function cgroupPath(cgroupsPath: string): string {
	const [slice, prefix, name] = cgroupsPath.split(":");
	const path = slice !== undefined && prefix !== undefined && name !== undefined ? systemdPath(slice, prefix, name) : cgroupsPath;
	const clean = posix.normalize(`/${path}`);
	if (clean === "/" || path.split("/").includes("..")) throw new ShimError("spec.invalid", `${cgroupsPath} is no path of a control group`);
	return clean;
}

function systemdPath(slice: string, prefix: string, name: string): string {
	const unit = name.endsWith(".slice") ? name : `${prefix === "" ? "" : `${prefix}-`}${name}.scope`;
	const words = (slice === "" ? "system.slice" : slice).replace(/\.slice$/u, "").split("-");
	const slices = slice === "-.slice" ? [] : words.map((_, index) => `${words.slice(0, index + 1).join("-")}.slice`);
	return [...slices, unit].join("/");
}

/** What a group's processes use; 0 for what no hierarchy counts. */
export interface CgroupUsage {
	/** CPU time in nanoseconds. */
	readonly cpuNanos: number;
	readonly userNanos: number;
	readonly systemNanos: number;
	/** Memory in bytes, the kernel's caches of files included. */
	readonly memoryBytes: number;
	/** The largest number for no limit. */
	readonly memoryLimitBytes: number;
	/** What of it is what, by version 2's names of memory.stat. */
	readonly memory: Readonly<Record<string, number>>;
	readonly processes: number;
}

/** Names of version 1's memory.stat and what version 2 calls the same (the kernel's cgroup-v1/memory and cgroup-v2 documents). */
const MEMORY_NAMES: Readonly<Record<string, string>> = {
	total_rss: "anon",
	total_cache: "file",
	total_shmem: "shmem",
	total_mapped_file: "file_mapped",
	total_dirty: "file_dirty",
	total_writeback: "file_writeback",
	total_inactive_anon: "inactive_anon",
	total_active_anon: "active_anon",
	total_inactive_file: "inactive_file",
	total_active_file: "active_file",
	total_unevictable: "unevictable",
	total_pgfault: "pgfault",
	total_pgmajfault: "pgmajfault",
};
/** Version 1 counts CPU time by kind in ticks of USER_HZ, 100 a second (cgroup-v1/cpuacct). */
const NANOS_PER_TICK = 10_000_000;

/** Lines of the form "name number". */
function pairs(text: string): Map<string, number> {
	return new Map([...text.matchAll(/^(\S+) (\d+)$/gmu)].map(([, name = "", value]) => [name, Number(value)]));
}

/**
 * The groups, in any hierarchy, that a process is in and the caller is not (cgroups(7), /proc/pid/cgroup): those that somebody has put it into.
 * None when the process is gone.
 */
export function cgroupsApart(pid: number): string[] {
	const own = new Set(groupsOf("self"));
	return [...new Set(groupsOf(String(pid)))].filter((path) => path !== "/" && !path.startsWith("/..") && !own.has(path));
}

/** Lines are `number:controllers:path`; a group that is removed already has ` (deleted)` behind its path. */
function groupsOf(pid: string): string[] {
	try {
		const lines = readFileSync(`/proc/${pid}/cgroup`, "utf8").trim().split("\n");
		return lines.map((line) => line.split(":").slice(2).join(":")).filter((path) => path !== "" && !path.endsWith(" (deleted)"));
	} catch (error) {
		if (errnoOf(error) === "ENOENT" || errnoOf(error) === "ESRCH") return [];
		throw error;
	}
}

let mounted: readonly CgroupHierarchy[] | undefined;

/** Those of this machine. They are mounted when it boots, while the table of mounts grows with its pods: it is read once. */
export function mountedHierarchies(): readonly CgroupHierarchy[] {
	if (mounted === undefined || mounted.length === 0) mounted = parseHierarchies(readFileSync(MOUNTINFO, "utf8"));
	return mounted;
}

/** One group. Made by `join`, removed by `remove`; both may be repeated. */
export class HostCgroup {
	/** Below each hierarchy's root, with a leading slash. */
	readonly path: string;
	readonly #hierarchies: readonly CgroupHierarchy[];

	/** @param path as `cgroupPath` gives it */
	constructor(path: string, hierarchies: readonly CgroupHierarchy[] = mountedHierarchies()) {
		this.path = path;
		this.#hierarchies = hierarchies;
	}

	/** What a program needs to be started in the group: see `startProgram`. */
	get entrance(): { readonly hierarchies: readonly JoinedHierarchy[]; readonly path: string } {
		const hierarchies = this.#hierarchies.map(({ mountPoint, version, controllers }) => ({
			root: mountPoint,
			second: version === 2,
			cpuset: version === 1 && controllers.includes("cpuset"),
		}));
		return { hierarchies, path: this.path };
	}

	/** Called when a process is in the group: it is there. */
	entered(): void {}

	/** The `host.cgroup` that a failure to enter the group is; undefined for any other failure. */
	failure(error: unknown): ShimError | undefined {
		if (!(error instanceof JoinError)) return undefined;
		return new ShimError("host.cgroup", `the pod's control group ${error.folder} can't be used: ${messageOf(error)}`, { cause: error });
	}

	/**
	 * Makes the group where it is missing and moves processes with all their threads into it: those that are there still. The kernel may take some
	 * milliseconds for the move.
	 * @throws ShimError `host.cgroup` that names the folder
	 */
	async join(...pids: readonly number[]): Promise<void> {
		const { hierarchies, path } = this.entrance;
		try {
			await cgroupJoin(hierarchies, path, pids);
		} catch (error) {
			throw this.failure(error) ?? error;
		}
		this.entered();
	}

	/**
	 * Writes a file of the group where it is: a name of version 1 or 2.
	 * @returns whether a hierarchy has taken it
	 */
	set(file: string, value: string): boolean {
		const taken = this.#hierarchies.map((hierarchy) => {
			const path = join(this.#folder(hierarchy), file);
			try {
				if (existsSync(path)) writeFileSync(path, value);
				return existsSync(path);
			} catch {
				return false;
			}
		});
		return taken.includes(true);
	}

	/** The processes in the group, by the first hierarchy that has it. */
	processes(): number[] {
		return this.#read("cgroup.procs")
			.split("\n")
			.filter((line) => line !== "")
			.map(Number);
	}

	/**
	 * Moves all processes of another group into this one. What they have in memory stays on the other's account (cgroup version 2; version 1 unless told).
	 * @returns their numbers
	 * @throws ShimError `host.cgroup`, also when new ones keep coming
	 */
	async takeFrom(other: HostCgroup): Promise<number[]> {
		const moved = new Set<number>();
		for (let attempt = 1; attempt <= MOVE_ATTEMPTS; attempt++) {
			const found = other.processes();
			if (found.length === 0) return [...moved];
			await this.join(...found);
			for (const pid of found) moved.add(pid);
		}
		throw new ShimError("host.cgroup", `the processes of the control group ${other.path} don't leave it`);
	}

	/**
	 * Removes the group if nothing is in it any more.
	 * @returns whether it is gone from all hierarchies
	 */
	removeEmpty(): boolean {
		return this.#hierarchies.every((hierarchy) => {
			try {
				rmdirSync(this.#folder(hierarchy));
				return true;
			} catch (error) {
				return errnoOf(error) === "ENOENT";
			}
		});
	}

	/**
	 * Removes the group, not those above it. Waits a second for processes that are ending.
	 * @throws ShimError `host.cgroup` when one stays in it
	 */
	async remove(): Promise<void> {
		const failed = await Promise.all(this.#hierarchies.map((hierarchy) => removeFolder(this.#folder(hierarchy))));
		const first = failed.find((error) => error !== undefined);
		if (first !== undefined) throw first;
	}

	/** What the group's processes use. */
	usage(): CgroupUsage {
		const limit = this.#read("memory.max") || this.#read("memory.limit_in_bytes");
		return {
			...this.#cpu(),
			memoryBytes: Number(this.#read("memory.current") || this.#read("memory.usage_in_bytes")),
			memoryLimitBytes: limit === "max" ? Number.MAX_SAFE_INTEGER : Math.min(Number(limit), Number.MAX_SAFE_INTEGER),
			memory: this.#memory(),
			processes: Number(this.#read("pids.current")),
		};
	}

	#cpu(): Pick<CgroupUsage, "cpuNanos" | "userNanos" | "systemNanos"> {
		const stat = pairs(this.#read("cpu.stat"));
		const micros = (name: string): number => (stat.get(name) ?? 0) * NANOS_PER_MICRO;
		if (stat.has("usage_usec"))
			return { cpuNanos: micros("usage_usec"), userNanos: micros("user_usec"), systemNanos: micros("system_usec") };
		const ticks = pairs(this.#read("cpuacct.stat"));
		const nanos = (name: string): number => (ticks.get(name) ?? 0) * NANOS_PER_TICK;
		return { cpuNanos: Number(this.#read("cpuacct.usage")), userNanos: nanos("user"), systemNanos: nanos("system") };
	}

	#memory(): Record<string, number> {
		const stat = pairs(this.#read("memory.stat"));
		if (!stat.has("total_cache")) return Object.fromEntries(stat);
		return Object.fromEntries(Object.entries(MEMORY_NAMES).map(([first, second]) => [second, stat.get(first) ?? 0]));
	}

	/** The first hierarchy's file of that name; empty when none has it. */
	#read(name: string): string {
		for (const hierarchy of this.#hierarchies) {
			try {
				return readFileSync(join(this.#folder(hierarchy), name), "utf8").trim();
			} catch {
				continue;
			}
		}
		return "";
	}

	#folder(hierarchy: CgroupHierarchy): string {
		return join(hierarchy.mountPoint, this.path);
	}
}

let turn: Promise<unknown> = Promise.resolve();

/** The kernel changes one group at a time, and moves a process for milliseconds: one thread of libuv's pool waits for that, not all of them, nor the loop. */
function removeInTurn(folder: string): Promise<void> {
	const removed = turn.then(() => rmdir(folder));
	turn = removed.catch(() => undefined);
	return removed;
}

async function removeFolder(folder: string): Promise<ShimError | undefined> {
	for (let attempt = 1; ; attempt++) {
		try {
			await removeInTurn(folder);
			return undefined;
		} catch (error) {
			const code = errnoOf(error);
			if (code === "ENOENT") return undefined;
			if (code !== "EBUSY" || attempt === REMOVE_ATTEMPTS)
				return new ShimError("host.cgroup", `the control group ${folder} can't be removed: ${messageOf(error)}`, { cause: error });
			await delay(REMOVE_PAUSE_MS);
		}
	}
}
