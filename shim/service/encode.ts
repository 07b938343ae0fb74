/** Small conversions between the shim's values and protobuf's. */

import type { google } from "../../proto/gen/containerd.js";

/** A wall-clock time in milliseconds as protobuf's Timestamp. */
export function timestamp(atMs: number): google.protobuf.Timestamp.$Properties {
	const seconds = Math.floor(atMs / 1000);
	return { seconds, nanos: Math.round((atMs - seconds * 1000) * 1_000_000) };
}
