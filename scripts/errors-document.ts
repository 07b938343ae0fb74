/** Generates `docs/errors.md` from the catalogue of errors. */

import { CATALOGUE } from "../shim/base/catalogue.ts";

/** The manual page of all errors. */
export function errorsMarkdown(): string {
	const lines = [
		"# Errors",
		"",
		"Generated from `shim/base/catalogue.ts` by `npm run docs`.",
		"",
		"Every failure of the shim has one of these reasons. Its text says what was attempted, on what and why it failed, and ends with a remedy in brackets; containerd passes",
		"it on unchanged to `ctr`, `crictl` and the pod's events. The code is the one that containerd's clients see. Where the place of the failure knows a better remedy than the",
		"one below, it says that.",
		"",
		"| reason | code | remedy |",
		"|---|---|---|",
		...Object.entries(CATALOGUE).map(([reason, { code, remedy }]) => `| \`${reason}\` | ${code} | ${remedy} |`),
	];
	return `${lines.join("\n")}\n`;
}
