/** The log: one JSON object a line, with fixed fields first, so that people and programs can read it. */

import { explain } from "./errors.ts";

/** Levels in rising order of importance. */
export const LOG_LEVELS = ["debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Values that a log line may carry. */
export type LogFields = Readonly<Record<string, string | number | bigint | boolean | undefined>>;

/** Where lines go: one finished line, newline included. */
export type LogSink = (line: string) => void;

/** A logger with fields of its own. */
export class Log {
	readonly #sink: LogSink;
	readonly #fields: LogFields;
	readonly #threshold: { level: LogLevel };

	/** @param from the logger whose level this one shares, when it was derived from one */
	constructor(sink: LogSink, level: LogLevel = "info", fields: LogFields = {}, from?: Log) {
		this.#sink = sink;
		this.#fields = fields;
		this.#threshold = from === undefined ? { level } : from.#threshold;
	}

	/** Changes the level of this logger and of all that came from it. */
	setLevel(level: LogLevel): void {
		this.#threshold.level = level;
	}

	/** A logger that adds fields to every line. */
	with(fields: LogFields): Log {
		return new Log(this.#sink, this.#threshold.level, { ...this.#fields, ...fields }, this);
	}

	debug(message: string, fields?: LogFields): void {
		this.#write("debug", message, fields);
	}
	info(message: string, fields?: LogFields): void {
		this.#write("info", message, fields);
	}
	warn(message: string, fields?: LogFields): void {
		this.#write("warn", message, fields);
	}
	/** An error line carries the whole chain of causes and the remedy. */
	error(message: string, error: unknown, fields?: LogFields): void {
		this.#write("error", message, { ...fields, error: explain(error) });
	}

	#write(level: LogLevel, message: string, fields: LogFields = {}): void {
		if (LOG_LEVELS.indexOf(level) < LOG_LEVELS.indexOf(this.#threshold.level)) return;
		const record = { time: new Date().toISOString(), level, message, ...this.#fields, ...fields };
		this.#sink(`${JSON.stringify(record, (_key, value: unknown) => (typeof value === "bigint" ? value.toString() : value))}\n`);
	}
}
