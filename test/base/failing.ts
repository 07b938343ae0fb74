import type { ErrorCode, ErrorReason } from "../../shim/base/errors.ts";

/** The parts of a ShimError that a test looks at, in the form that tap's `throws` and `rejects` compare with. */
export function failing(wanted: {
	readonly reason: ErrorReason;
	readonly code?: ErrorCode;
	readonly message?: string | RegExp;
	readonly remedy?: string | RegExp;
}): Error {
	return wanted as unknown as Error;
}
