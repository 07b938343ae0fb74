/** Many small processes in control groups with limits of memory, as kubelet nests them: each stands for a VM and its pod. */
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, rmdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { mountedHierarchies, type CgroupHierarchy } from "../shim/host/cgroups.ts";
import { eventually } from "../test/support/retry.ts";

const WAIT_MS = 60_000;
/** What kubelet gives all pods, and a pod. */
const NODE_LIMIT = String(16 * 2 ** 30);
const POD_LIMIT = String(256 * 2 ** 20);

/** One of them. */
export type LimitedProcess = {
	readonly pid: number;
	/** Below each hierarchy's root. */
	readonly cgroup: string;
};

/** All of them. Its owner calls `end`. */
export class LimitedProcesses {
	readonly #hierarchy: CgroupHierarchy;
	readonly #folders: string[] = [];
	#shell: ChildProcess | undefined;
	#all: readonly LimitedProcess[] = [];

	private constructor(hierarchy: CgroupHierarchy) {
		this.#hierarchy = hierarchy;
	}

	/** @param path of the group that holds all; it is made and removed */
	static async start(path: string, count: number): Promise<LimitedProcesses> {
		const hierarchies = mountedHierarchies();
		const counts = hierarchies.find(({ version, controllers }) => version === 1 && controllers.includes("memory"));
		const hierarchy = counts ?? hierarchies.find(({ version }) => version === 2);
		if (hierarchy === undefined) throw new Error("no hierarchy of control groups that counts memory is mounted");
		const processes = new LimitedProcesses(hierarchy);
		try {
			await processes.#begin(path, count);
			return processes;
		} catch (error) {
			await processes.end();
			throw error;
		}
	}

	/** Those that run. */
	get all(): readonly LimitedProcess[] {
		return this.#all;
	}

	async #begin(path: string, count: number): Promise<void> {
		const burstable = `${path}/kubepods/burstable`;
		this.#make(path);
		this.#make(`${path}/kubepods`, NODE_LIMIT);
		this.#make(burstable);
		const pids = await this.#spawn(count);
		this.#all = pids.map((pid, at) => {
			const pod = `${burstable}/pod${at}`;
			this.#make(pod, POD_LIMIT);
			const cgroup = `${pod}/vm`;
			writeFileSync(join(this.#make(cgroup), "cgroup.procs"), String(pid));
			return { pid, cgroup };
		});
	}

	/** Processes that sleep, in a process group of their own. */
	async #spawn(count: number): Promise<number[]> {
		const script = `for i in $(seq ${count}); do sleep 100000 & echo $!; done; echo; wait`;
		const shell = spawn("sh", ["-c", script], { stdio: ["ignore", "pipe", "inherit"], detached: true });
		this.#shell = shell;
		let said = "";
		while (!said.endsWith("\n\n")) said += String((await once(shell.stdout, "data"))[0]);
		return said.trim().split("\n").map(Number);
	}

	/** Makes a group, whose own groups count memory as well. */
	#make(path: string, limit?: string): string {
		const folder = join(this.#hierarchy.mountPoint, path);
		mkdirSync(folder);
		this.#folders.push(folder);
		const second = this.#hierarchy.version === 2;
		if (second && !path.endsWith("/vm")) writeFileSync(join(folder, "cgroup.subtree_control"), "+memory");
		if (limit !== undefined) writeFileSync(join(folder, second ? "memory.max" : "memory.limit_in_bytes"), limit);
		return folder;
	}

	/** Ends all of them, and removes their groups, which the kernel lets go a moment after their processes. Safe to call twice. */
	async end(): Promise<void> {
		const shell = this.#shell;
		this.#shell = undefined;
		if (shell?.pid !== undefined) {
			process.kill(-shell.pid, "SIGKILL");
			if (shell.exitCode === null && shell.signalCode === null) await once(shell, "exit");
		}
		for (const folder of this.#folders.splice(0).toReversed())
			await eventually(`the end of ${folder}`, WAIT_MS, () => {
				if (existsSync(folder)) rmdirSync(folder);
				return true;
			});
	}
}
