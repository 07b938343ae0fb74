/** File systems of the host: free space, and FIFOs. */

import { statfs } from "node:fs/promises";

export { makeFifo } from "../../native/src/file.ts";

/** Space of a file system in bytes; `freeBytes` is what an unprivileged process may still use. */
export interface Space {
	readonly totalBytes: number;
	readonly freeBytes: number;
}

/** The space of the file system that holds `path` (statfs(2)). */
export async function spaceAt(path: string): Promise<Space> {
	const stats = await statfs(path);
	return { totalBytes: stats.blocks * stats.bsize, freeBytes: stats.bavail * stats.bsize };
}
