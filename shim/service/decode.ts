/** From containerd's bytes to its messages. */

import { messageOf, ShimError } from "../base/errors.ts";

/** Decodes a request. @throws ShimError `call.invalid` when it is not of the message's form */
export function decode<T>(codec: { decode(bytes: Uint8Array): T }, payload: Uint8Array): T {
	try {
		return codec.decode(payload);
	} catch (error) {
		throw new ShimError("call.invalid", `containerd's request can't be decoded: ${messageOf(error)}`, { cause: error });
	}
}
