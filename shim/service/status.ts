/** From the shim's error codes to gRPC's status codes, by containerd's own table (containerd `errdefs`). */

import { asShimError, explain } from "../base/errors.ts";
import type { ErrorCode } from "../base/errors.ts";
import { GrpcCode } from "../wire/codes.ts";

const STATUS: Readonly<Record<ErrorCode, number>> = {
	unknown: GrpcCode.UNKNOWN,
	"invalid-argument": GrpcCode.INVALID_ARGUMENT,
	"not-found": GrpcCode.NOT_FOUND,
	"already-exists": GrpcCode.ALREADY_EXISTS,
	"failed-precondition": GrpcCode.FAILED_PRECONDITION,
	unavailable: GrpcCode.UNAVAILABLE,
	"not-implemented": GrpcCode.UNIMPLEMENTED,
	"deadline-exceeded": GrpcCode.DEADLINE_EXCEEDED,
	"resource-exhausted": GrpcCode.RESOURCE_EXHAUSTED,
	"permission-denied": GrpcCode.PERMISSION_DENIED,
	canceled: GrpcCode.CANCELED,
	internal: GrpcCode.INTERNAL,
};

/** How a failed call is answered. */
export interface FailedAnswer {
	readonly code: number;
	readonly message: string;
}

/** Converts anything thrown into the answer that containerd gets; the text has the causes and the remedy. */
export function failedAnswer(error: unknown): FailedAnswer {
	const known = asShimError(error, "internal", "an unexpected failure");
	return { code: STATUS[known.code], message: explain(known) };
}
