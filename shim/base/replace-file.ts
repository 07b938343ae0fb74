/** Files that are replaced whole. */

import { renameSync, rmSync, writeFileSync } from "node:fs";

const OWNER_ALONE = 0o600;

/**
 * Replaces a file in one step, for its owner alone: who reads it finds the old content or the new one, and who has the old one open keeps it. Nothing is
 * synced to a disk: it is for tmpfs.
 * @throws SystemError: ENOENT, ENOSPC, ...; the old file is then as it was
 */
export function replaceFile(path: string, content: string | Uint8Array): void {
	const next = `${path}.next`;
	try {
		writeFileSync(next, content, { mode: OWNER_ALONE });
		renameSync(next, path);
	} catch (error) {
		rmSync(next, { force: true });
		throw error;
	}
}
