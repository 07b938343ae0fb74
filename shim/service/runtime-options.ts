/** The runtime options of containerd's runtime class: only the path of a configuration file is taken from them. */

import { messageOf, ShimError } from "../base/errors.ts";
import { runtimeoptions } from "../../proto/gen/containerd.js";

/** An `Any` of protobuf. */
interface AnyMessage {
	readonly type_url?: string | null;
	readonly value?: Uint8Array | null;
}

/** The message's name; containerd 1.6's CRI and later versions put different hosts before it. */
const OPTIONS = /(^|[./])runtimeoptions\.v1\.Options$/u;

/**
 * The configuration file that runtime options name.
 * @returns undefined when there are no options, options of another runtime, or none that names a file
 * @throws ShimError `call.invalid` when they can't be decoded
 */
export function optionsConfigFile(options: AnyMessage | null | undefined): string | undefined {
	if (options?.value == null || !OPTIONS.test(options.type_url ?? "")) return undefined;
	try {
		const path = runtimeoptions.v1.Options.decode(options.value).config_path;
		return path === "" ? undefined : path;
	} catch (error) {
		throw new ShimError("call.invalid", `the runtime options can't be decoded: ${messageOf(error)}`, { cause: error });
	}
}
