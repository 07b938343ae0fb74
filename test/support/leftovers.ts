/**
 * Finds what a container left behind: processes, mounts, loop devices, links, sockets, files, cgroups, containerd's own records.
 * FIFOs are not looked at: `ctr` makes and removes them (and 1.6 leaves those of an exec whose container was removed).
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { cgroupsNamed } from "./cgroups.ts";
import type { PrivateContainerd } from "./containerd.ts";
import { runOk } from "./process.ts";
import { allProcesses, linksSeenBy, listeningSocketsSeenBy, mountsSeenBy, type ProcessInfo } from "./procfs.ts";
import { eventually } from "./retry.ts";

const SETTLE_TIMEOUT_MS = 10_000;
const FOLDER_DEPTH_MAX = 8;

/** The entries of the state folder that stay while snpd serves the node: see docs/contracts.md, "Names and places". */
const LASTING_STATE: readonly string[] = ["snpd.sock", "snpd.lock", "snpd.log", "keeper.log", "k", "p", "w", "t", "e"];

/** True for the one snpd of the node, which outlives the pods. */
export function isDaemon(info: ProcessInfo): boolean {
	return / --state-dir /.test(`${info.commandLine} `) && /(^|\/)snpd(\.\w+)?( |$)/.test(info.commandLine);
}

function filesBelow(dir: string, prefix = "", depth = 0): string[] {
	if (depth > FOLDER_DEPTH_MAX) return [];
	let entries: string[];
	try {
		entries = readdirSync(dir);
	} catch {
		return [];
	}
	return entries.flatMap((name) => [`${prefix}${name}`, ...filesBelow(join(dir, name), `${prefix}${name}/`, depth + 1)]);
}

function processes(cd: PrivateContainerd): string[] {
	return cd
		.processes()
		.filter((info) => !isDaemon(info) && !cd.isContainerd(info))
		.map((info) => `process: ${info.pid} ${info.state} ${info.commandLine}`);
}

function mounts(cd: PrivateContainerd): string[] {
	// One process of each mount namespace that is in use is enough.
	const byNamespace = new Map(cd.processes().map((info) => [info.mountNamespace, info] as const));
	byNamespace.delete(cd.init.mountNamespace);
	const inner = [...byNamespace.values()].flatMap((info) =>
		mountsSeenBy(info.pid).map((mount) => `mount seen by ${basename(info.commandLine.split(" ")[0] ?? "")}: ${mount}`),
	);
	return [...mountsSeenBy(cd.init.pid).map((mount) => `mount: ${mount}`), ...inner];
}

function loopDevices(cd: PrivateContainerd): string[] {
	return readdirSync("/sys/block")
		.filter((name) => name.startsWith("loop"))
		.flatMap((name) => {
			try {
				const file = readFileSync(`/sys/block/${name}/loop/backing_file`, "utf8").trim();
				return file.startsWith(cd.rootDir) || file.startsWith(cd.stateDir) ? [`loop device: ${name} on ${file}`] : [];
			} catch {
				return [];
			}
		});
}

function stateFiles(cd: PrivateContainerd): string[] {
	return filesBelow(cd.seen(cd.stateDir))
		.filter((path) => !LASTING_STATE.includes(path))
		.map((path) => {
			const kind = path.startsWith("e/")
				? "event that containerd did not get"
				: path.startsWith("p/")
					? "journal entry or pod file"
					: path.startsWith("k/")
						? "keeper socket"
						: "state file";
			return `${kind}: ${cd.stateDir}/${path}`;
		});
}

/** The stand-in for Cloud Hypervisor keeps sockets of each VM in a folder under /tmp: those that no process names any more. */
function abandonedFolders(): string[] {
	const folders = readdirSync("/tmp")
		.filter((name) => /^ch-qemu-[A-Za-z0-9]{6}$/.test(name))
		.map((name) => join("/tmp", name));
	if (folders.length === 0) return [];
	const commandLines = allProcesses()
		.map((info) => info.commandLine)
		.join("\n");
	return folders.filter((folder) => !commandLines.includes(folder)).map((folder) => `folder: ${folder}`);
}

function entries(dir: string): string[] {
	return existsSync(dir) ? readdirSync(dir) : [];
}

/** Bundles of tasks and of sandboxes, and the files of pods. */
function bundles(cd: PrivateContainerd): string[] {
	const folders = [
		join(cd.rootDir, "state/io.containerd.runtime.v2.task", cd.namespace),
		join(cd.rootDir, "state/io.containerd.sandbox.controller.v1.shim", cd.namespace),
		join(cd.rootDir, "root/io.containerd.grpc.v1.cri/sandboxes"),
	];
	return folders.flatMap((dir) => entries(dir).map((name) => `containerd's folder: ${join(dir, name)}`));
}

function cgroups(cd: PrivateContainerd): string[] {
	const ids = [...cd.containerIds];
	const marks = [cd.cgroupMark, ...ids.map((id) => cd.podKey(id))];
	// The namespace's own folder is made by whoever is first and has no owner: only what is in it counts.
	return cgroupsNamed(marks)
		.filter((folder) => basename(folder) !== cd.cgroupMark)
		.map((folder) => `cgroup: ${folder}`);
}

async function records(cd: PrivateContainerd): Promise<string[]> {
	const list = async (kind: string, ...args: readonly string[]): Promise<string[]> => {
		const { stdout } = await runOk([cd.ctrPath, "--address", cd.address, "--namespace", cd.namespace, ...args]);
		return stdout
			.split("\n")
			.map((line) => line.trim())
			.filter((line) => line !== "")
			.map((line) => `${kind}: ${line}`);
	};
	return [...(await list("task", "task", "ls", "--quiet")), ...(await list("container", "container", "ls", "--quiet"))];
}

/** @param all containerd's own records as well, for which it has to be asked */
async function listResources(cd: PrivateContainerd, all = true): Promise<string[]> {
	return [
		...processes(cd),
		...mounts(cd),
		...loopDevices(cd),
		...linksSeenBy(cd.init.pid).map((name) => `link: ${name}`),
		...listeningSocketsSeenBy(cd.init.pid)
			.filter((path) => path !== join(cd.stateDir, "snpd.sock") && !/\/snpd\.sock\.\d+$/.test(path))
			.map((path) => `listening socket: ${path}`),
		...stateFiles(cd),
		...abandonedFolders(),
		...bundles(cd),
		...cgroups(cd),
		...(all ? await records(cd) : []),
	];
}

/** The state of one private containerd before a test, to compare with. */
export class Leftovers {
	readonly #containerd: PrivateContainerd;
	#before: ReadonlyMap<string, number>;

	private constructor(containerd: PrivateContainerd, before: ReadonlyMap<string, number>) {
		this.#containerd = containerd;
		this.#before = before;
	}

	/** Notes what is there now. To be called when containerd is up, before the first container. */
	static async watch(containerd: PrivateContainerd): Promise<Leftovers> {
		return new Leftovers(containerd, count(await listResources(containerd)));
	}

	/** What is there now and was not there before, by kind and name. @param all see `listResources` */
	async list(all = true): Promise<string[]> {
		const now = count(await listResources(this.#containerd, all));
		// snpd in a mount namespace of its own sees a copy of the first mounts: those are no leftovers.
		const known = (name: string): number => this.#before.get(name.replace(/^mount seen by [^:]*:/, "mount:")) ?? 0;
		return [...now].filter(([name, times]) => times > known(name)).map(([name]) => name);
	}

	/** Takes what is there now as given, so that one leak is reported once. */
	async forgive(): Promise<void> {
		this.#before = count(await listResources(this.#containerd));
	}

	/**
	 * Waits up to 10 s until nothing is left (a release may end a moment after the last answer).
	 * @returns what is left after all; empty when clean.
	 */
	async settle(): Promise<string[]> {
		let left: string[] = [];
		try {
			await eventually("nothing left", SETTLE_TIMEOUT_MS, async () => {
				left = await this.list();
				return left.length === 0 ? true : undefined;
			});
		} catch {
			// The deadline is no error of its own: what is left tells more.
		}
		return left;
	}
}

function count(names: readonly string[]): Map<string, number> {
	const counts = new Map<string, number>();
	for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
	return counts;
}
