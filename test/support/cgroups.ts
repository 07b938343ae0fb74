/** Control groups that a private containerd leaves, in every hierarchy (v1 controllers, the unified one). */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { rmdir } from "node:fs/promises";
import { join } from "node:path";
import { eventually } from "./retry.ts";

const CGROUP_ROOT = "/sys/fs/cgroup";
const DEPTH_MAX = 10;
const WAIT_MS = 60_000;

function subfolders(dir: string): string[] {
	try {
		return readdirSync(dir, { withFileTypes: true })
			.filter((entry) => entry.isDirectory())
			.map((entry) => join(dir, entry.name));
	} catch {
		return [];
	}
}

/** Every cgroup folder whose own name contains one of `marks`, and those below it; parents come before their children. */
export function cgroupsNamed(marks: readonly string[]): string[] {
	const found: string[] = [];
	const visit = (dir: string, inside: boolean, depth: number): void => {
		if (depth > DEPTH_MAX) return;
		for (const folder of subfolders(dir)) {
			const name = folder.slice(dir.length + 1);
			const ours = inside || marks.some((mark) => name.includes(mark));
			if (ours) found.push(folder);
			visit(folder, ours, depth + 1);
		}
	};
	visit(CGROUP_ROOT, false, 0);
	return found;
}

/** Removes the cgroups named after a containerd namespace. Those with processes stay. */
export async function removeCgroups(mark: string): Promise<void> {
	for (const folder of cgroupsNamed([mark]).reverse()) await rmdir(folder).catch(() => undefined);
}

/**
 * Removes the folders that a node's agent made for a pod, and they alone: what is in them is the runtime's to remove. That happens a moment after the pod's
 * end was told, so this tries again, as the agent does; what stays is found by whoever looks for leftovers.
 */
export async function removePodCgroups(mark: string, uid: string): Promise<void> {
	for (const folder of cgroupsNamed([mark]).filter((path) => path.endsWith(`/${uid}`)))
		await eventually(`the end of ${folder}`, WAIT_MS, async () => {
			if (existsSync(folder)) await rmdir(folder);
			return true;
		}).catch(() => undefined);
}

/** A group with a limit of memory in the hierarchy that counts it; made when it is not there. */
export class LimitedGroup {
	readonly #folder: string;
	readonly #files: { readonly limit: string; readonly usage: string };

	/** @param path below the hierarchy's root, with a leading slash; the groups above it hand memory down */
	constructor(path: string, bytes: number) {
		const first = join(CGROUP_ROOT, "memory");
		const old = existsSync(first);
		this.#folder = join(old ? first : CGROUP_ROOT, path);
		this.#files = old
			? { limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes" }
			: { limit: "memory.max", usage: "memory.current" };
		mkdirSync(this.#folder, { recursive: true });
		this.limit(bytes);
	}

	limit(bytes: number): void {
		writeFileSync(join(this.#folder, this.#files.limit), String(bytes));
	}

	/** What its processes use, without pages of files that nobody has used lately. */
	usedBytes(): number {
		const stat = readFileSync(join(this.#folder, "memory.stat"), "utf8");
		const inactive = /^(?:total_)?inactive_file (\d+)$/gmu;
		return Number(readFileSync(join(this.#folder, this.#files.usage), "utf8")) - Number([...stat.matchAll(inactive)].at(-1)?.[1] ?? 0);
	}
}
