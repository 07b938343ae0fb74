/** What the tests read from /proc, in the host's view. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";

/** One process of the host. */
export type ProcessInfo = {
	readonly pid: number;
	readonly parentPid: number;
	/** `R`, `S`, `Z`..., as in proc(5). */
	readonly state: string;
	/** Arguments joined by spaces; the name in brackets when there are none (a zombie, a kernel thread). */
	readonly commandLine: string;
	/** Inode of the PID namespace, such as `pid:[4026531836]`. */
	readonly pidNamespace: string;
	readonly mountNamespace: string;
};

function readOrNothing(path: string): string {
	try {
		return readFileSync(path, "latin1");
	} catch {
		return "";
	}
}

function linkOrNothing(path: string): string {
	try {
		return readlinkSync(path);
	} catch {
		return "";
	}
}

/** One process, or undefined when it is gone. */
export function processInfo(pid: number): ProcessInfo | undefined {
	const stat = readOrNothing(`/proc/${pid}/stat`);
	// The name in parentheses may hold spaces and parentheses itself: the fields begin behind the last one.
	const nameEnd = stat.lastIndexOf(")");
	if (nameEnd < 0) return undefined;
	const [state = "?", parent = "0"] = stat.slice(nameEnd + 2).split(" ");
	const args = readOrNothing(`/proc/${pid}/cmdline`)
		.split("\0")
		.filter((arg) => arg !== "");
	return {
		pid,
		parentPid: Number(parent),
		state,
		commandLine: args.length > 0 ? args.join(" ") : `[${stat.slice(stat.indexOf("(") + 1, nameEnd)}]`,
		pidNamespace: linkOrNothing(`/proc/${pid}/ns/pid`),
		mountNamespace: linkOrNothing(`/proc/${pid}/ns/mnt`),
	};
}

/** All processes of the host. */
export function allProcesses(): ProcessInfo[] {
	return readdirSync("/proc")
		.filter((name) => /^\d+$/.test(name))
		.map((name) => processInfo(Number(name)))
		.filter((info) => info !== undefined);
}

/** The mounts that a process sees, as `source on /mount/point type fs`, outermost first. */
export function mountsSeenBy(pid: number): string[] {
	return readOrNothing(`/proc/${pid}/mountinfo`)
		.split("\n")
		.filter((line) => line !== "")
		.map((line) => {
			const [front = "", back = ""] = line.split(" - ");
			const [type = "?", source = "?"] = back.split(" ");
			return `${source} on ${front.split(" ")[4] ?? "?"} type ${type}`;
		});
}

/** The network interfaces in a process's network namespace. */
export function linksSeenBy(pid: number): string[] {
	return readOrNothing(`/proc/${pid}/net/dev`)
		.split("\n")
		.slice(2)
		.map((line) => line.split(":")[0]?.trim() ?? "")
		.filter((name) => name !== "");
}

/** The paths of the listening Unix sockets in a process's network namespace (abstract ones begin with `@`). */
export function listeningSocketsSeenBy(pid: number): string[] {
	const acceptConnections = 0x10000;
	return readOrNothing(`/proc/${pid}/net/unix`)
		.split("\n")
		.slice(1)
		.flatMap((line) => {
			const fields = line.trim().split(/\s+/);
			const path = fields[7];
			return path !== undefined && (Number.parseInt(fields[3] ?? "0", 16) & acceptConnections) !== 0 ? [path] : [];
		});
}

/** What the descriptors of a process are open on, sorted, without the numbers that differ each time. */
export function descriptorsOf(pid: number): string[] {
	let names: string[];
	try {
		names = readdirSync(`/proc/${pid}/fd`);
	} catch {
		return [];
	}
	return names
		.map((name) => linkOrNothing(`/proc/${pid}/fd/${name}`).replace(/\[\d+\]$/, ""))
		.filter((name) => name !== "")
		.sort();
}
