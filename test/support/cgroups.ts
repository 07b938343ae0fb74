/** Control groups that a private containerd leaves, in every hierarchy (v1 controllers, the unified one). */
import { readdirSync } from "node:fs";
import { rmdir } from "node:fs/promises";
import { join } from "node:path";

const CGROUP_ROOT = "/sys/fs/cgroup";
const DEPTH_MAX = 10;

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
