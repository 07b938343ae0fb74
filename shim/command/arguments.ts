/** Command-line arguments that the programs share. */

import { ShimError } from "../base/errors.ts";

export const SNPD_USAGE =
	"usage: snpd [--state-dir DIR] | --help | --version; keepers and systemd start it with its socket as descriptor 3";

/**
 * The value of `--state-dir DIR` (or `--state-dir=DIR`).
 * @returns undefined when it is not given
 * @throws ShimError `call.invalid` for any other argument
 */
export function stateDirArgument(args: readonly string[]): string | undefined {
	let found: string | undefined;
	for (let index = 0; index < args.length; index++) {
		const argument = args[index] ?? "";
		if (argument.startsWith("--state-dir=")) found = argument.slice("--state-dir=".length);
		else if (argument === "--state-dir" && args[index + 1] !== undefined) found = args[++index];
		else throw new ShimError("call.invalid", `unknown argument ${argument}`, { remedy: SNPD_USAGE });
	}
	return found;
}
