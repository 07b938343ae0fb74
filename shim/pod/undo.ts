/** Giving back after a failure, or at an end that nothing may stop. */

import type { Log } from "../base/log.ts";
import type { Scope } from "../base/scope.ts";

/** Closes a scope; what can't be released is logged, since the caller must hear of the first failure, or of none. */
export async function undo(scope: Scope, log: Log): Promise<void> {
	try {
		await scope.close();
	} catch (error) {
		log.error("cleaning up failed", error);
	}
}
