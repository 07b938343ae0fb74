/** What stands for MEASUREMENT in a report of sample mode. It proves nothing: whoever starts the guest says it. */

import { createHash } from "node:crypto";

const LABEL = "containerd-shim-snp sample measurement 1";

/** What a guest of sample mode is started with: SHA-256 of its files as 64 hexadecimal digits, and its command line without the parameters of sample mode. */
export interface SampleLaunch {
	readonly kernel: string;
	readonly initramfs: string;
	readonly commandLine: string;
}

/** 96 hexadecimal digits: SHA-384 over a label and the parts, each ended by a line feed. */
export function sampleMeasurement({ kernel, initramfs, commandLine }: SampleLaunch): string {
	return createHash("sha384").update([LABEL, kernel, initramfs, commandLine, ""].join("\n")).digest("hex");
}
