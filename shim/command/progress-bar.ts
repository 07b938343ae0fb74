/** A bar on standard error, where that is a terminal. */

import { stderr } from "node:process";

const WIDTH = 30;
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"] as const;

/** One line that is drawn over and over. */
export class ProgressBar {
	readonly #label: string;
	#shown = "";

	constructor(label: string) {
		this.#label = label;
	}

	/** Shows parts, each from 0 to 1. */
	show(parts: readonly number[]): void {
		if (!stderr.isTTY) return;
		const share = parts.reduce((sum, part) => sum + part, 0) / Math.max(parts.length, 1);
		const filled = Math.round(share * WIDTH);
		const done = parts.filter((part) => part >= 1).length;
		const line = `${this.#label} [${"#".repeat(filled)}${"-".repeat(WIDTH - filled)}] ${done} of ${parts.length}`;
		if (line === this.#shown) return;
		this.#shown = line;
		stderr.write(`\r\u001b[K${line}`);
	}

	/** Takes the line away. */
	clear(): void {
		if (this.#shown !== "") stderr.write("\r\u001b[K");
		this.#shown = "";
	}
}

/** A number of bytes for people: `1.5 MiB`. */
export function shownBytes(bytes: number): string {
	let [value, unit] = [bytes, 0];
	while (value >= 1024 && unit < UNITS.length - 1) {
		value /= 1024;
		unit += 1;
	}
	return `${unit === 0 ? value : value.toFixed(1)} ${UNITS[unit] ?? ""}`;
}
