/** What the tests of this room share. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Test } from "tap";

import { ShimError } from "../../shim/base/errors.ts";

/**
 * The ShimError with which a promise fails.
 * @throws when it does not fail, or with something else
 */
export async function failure(promise: Promise<unknown>): Promise<ShimError> {
	try {
		await promise;
	} catch (error) {
		if (error instanceof ShimError) return error;
		throw error;
	}
	throw new Error("it did not fail");
}

/** A folder with a path that is short enough for sockets; it is removed after the test. */
export function shortFolder(t: Test): string {
	const folder = mkdtempSync(join(tmpdir(), "snp-"));
	t.teardown(() => rmSync(folder, { recursive: true, force: true }));
	return folder;
}
