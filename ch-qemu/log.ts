/** `--log-file` and `-v`: one line an entry. Standard error when no file is named. */
import { openSync, writeSync } from "node:fs";

export type LogLevel = "ERROR" | "WARN" | "INFO" | "DEBUG";
const LEVELS: readonly LogLevel[] = ["ERROR", "WARN", "INFO", "DEBUG"];

export class Log {
	readonly #fd: number;
	readonly #level: number;
	readonly #startedNs = process.hrtime.bigint();

	/** `verbosity` counts the `-v`: 0 shows warnings, 1 information, 2 and more everything. Throws when the file can't be made. */
	constructor(file: string | undefined, verbosity: number) {
		this.#fd = file === undefined ? 2 : openSync(file, "w", 0o600);
		this.#level = Math.min(1 + verbosity, LEVELS.length - 1);
	}

	/** The descriptor, for children whose complaints belong in the same place. */
	get fd(): number {
		return this.#fd;
	}

	error(text: string): void {
		this.#write("ERROR", text);
	}
	warn(text: string): void {
		this.#write("WARN", text);
	}
	info(text: string): void {
		this.#write("INFO", text);
	}
	debug(text: string): void {
		this.#write("DEBUG", text);
	}

	#write(level: LogLevel, text: string): void {
		if (LEVELS.indexOf(level) > this.#level) return;
		const seconds = Number(process.hrtime.bigint() - this.#startedNs) / 1e9;
		try {
			writeSync(this.#fd, `ch-qemu: ${seconds.toFixed(6)}s: ${level}: ${text}\n`);
		} catch {
			// A log that can't be written must not stop a VM.
		}
	}
}
