/** Control groups of the host, of both versions side by side (cgroups(7)): a group is the same path in every hierarchy that is mounted. */

import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { dirname, join, posix } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

import { errnoOf, messageOf, ShimError } from "../base/errors.ts";

/** One mounted hierarchy. */
export interface CgroupHierarchy {
	readonly mountPoint: string;
	readonly version: 1 | 2;
	/** The controllers of a version 1 hierarchy, and mount options beside them. */
	readonly controllers: readonly string[];
}

/** Controllers that the groups above ours hand down in version 2, where the kernel has them. */
const WANTED_CONTROLLERS = ["cpu", "memory", "io", "pids", "cpuset"];
/** What a new cpuset of version 1 must have before a process may enter it. */
const CPUSET_FILES = ["cpuset.cpus", "cpuset.mems"];
/** A killed process leaves its group a moment after its end is seen; nothing tells when (version 1). */
const REMOVE_ATTEMPTS = 50;
const REMOVE_PAUSE_MS = 20;
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

/** One group. Made by `join`, removed by `remove`; both may be repeated. */
export class HostCgroup {
	/** Below each hierarchy's root, with a leading slash. */
	readonly path: string;
	readonly #hierarchies: readonly CgroupHierarchy[];

	/** @param path as `cgroupPath` gives it */
	constructor(path: string, hierarchies: readonly CgroupHierarchy[] = parseHierarchies(readFileSync(MOUNTINFO, "utf8"))) {
		this.path = path;
		this.#hierarchies = hierarchies;
	}

	/**
	 * Makes the group where it is missing and moves a process with all its threads into it.
	 * @throws ShimError `host.cgroup` that names the folder
	 */
	join(pid: number): void {
		for (const hierarchy of this.#hierarchies) {
			const folder = this.#folder(hierarchy);
			try {
				makeGroup(hierarchy, this.path);
				writeFileSync(join(folder, "cgroup.procs"), String(pid));
			} catch (error) {
				if (errnoOf(error) === "ESRCH") return;
				throw new ShimError("host.cgroup", `the pod's control group ${folder} can't be used: ${messageOf(error)}`, { cause: error });
			}
		}
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

	/** What the group's processes use: CPU time in nanoseconds, memory in bytes, their number; 0 for what no hierarchy counts. */
	usage(): { readonly cpuNanos: number; readonly memoryBytes: number; readonly processes: number } {
		const usec = /^usage_usec (\d+)$/mu.exec(this.#read("cpu.stat"))?.[1];
		return {
			cpuNanos: usec === undefined ? Number(this.#read("cpuacct.usage")) : Number(usec) * NANOS_PER_MICRO,
			memoryBytes: Number(this.#read("memory.current") || this.#read("memory.usage_in_bytes")),
			processes: Number(this.#read("pids.current")),
		};
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

function makeGroup(hierarchy: CgroupHierarchy, path: string): void {
	let folder = hierarchy.mountPoint;
	for (const part of path.split("/").filter((word) => word !== "")) {
		if (hierarchy.version === 2) handDown(folder);
		folder = join(folder, part);
		if (!existsSync(folder)) mkdirSync(folder, { mode: 0o755 });
		if (hierarchy.version === 1 && hierarchy.controllers.includes("cpuset")) inheritCpuset(folder);
	}
}

/** A controller that a group above keeps for itself is not there for ours: that is whoever's choice who made the group above. */
function handDown(folder: string): void {
	for (const controller of WANTED_CONTROLLERS) {
		try {
			writeFileSync(join(folder, "cgroup.subtree_control"), `+${controller}`);
		} catch {
			continue;
		}
	}
}

function inheritCpuset(folder: string): void {
	for (const file of CPUSET_FILES) {
		const path = join(folder, file);
		if (readFileSync(path, "utf8").trim() === "") writeFileSync(path, readFileSync(join(dirname(folder), file)));
	}
}

async function removeFolder(folder: string): Promise<ShimError | undefined> {
	for (let attempt = 1; ; attempt++) {
		try {
			rmdirSync(folder);
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
