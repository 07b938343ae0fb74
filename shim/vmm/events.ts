/** The VMM's event monitor: pretty-printed JSON objects one after another, over a FIFO that outlives snpd. */

import { openSync, constants } from "node:fs";
import { Socket } from "node:net";

/** Something that happened in the VMM. */
export interface VmmEvent {
	/** Since the start of the VMM. */
	readonly timestampMs: number;
	/** `vm`, `vmm`, `virtio-device`, `guest`... */
	readonly source: string;
	/** `booted`, `shutdown`, `rebooting`, `device-removed`, `panic`... */
	readonly event: string;
	readonly properties: Readonly<Record<string, string>>;
}

/** Called for each event in order; what it throws is the caller's own affair. */
export type OnVmmEvent = (event: VmmEvent) => void;

const MAX_EVENT_CHARACTERS = 64 * 1024;

/**
 * Cuts a stream into events. An event begins at a line that begins with `{` and ends at one that begins with `}` (or at the same line):
 * JSON has no raw newlines inside its texts, so that this also finds its feet in the middle of a stream, or after damage, which it drops.
 */
export class EventParser {
	#line = "";
	#object = "";
	#inside = false;

	/** Takes what arrived and gives the events that it completes. */
	push(text: string): VmmEvent[] {
		const events: VmmEvent[] = [];
		const lines = (this.#line + text).split("\n");
		this.#line = lines.pop() ?? "";
		// A line that never ends is damage.
		if (this.#line.length > MAX_EVENT_CHARACTERS) this.#line = "";
		for (const line of lines) {
			const event = this.#take(line);
			if (event !== undefined) events.push(event);
		}
		return events;
	}

	#take(line: string): VmmEvent | undefined {
		if (line.startsWith("{")) {
			this.#object = "";
			this.#inside = true;
		}
		if (!this.#inside) return undefined;
		this.#object += `${line}\n`;
		if (this.#object.length > MAX_EVENT_CHARACTERS) this.#inside = false;
		const ends = line.startsWith("}") || (line.startsWith("{") && line.trimEnd().endsWith("}"));
		if (!ends || !this.#inside) return undefined;
		this.#inside = false;
		return parseEvent(this.#object);
	}
}

function parseEvent(text: string): VmmEvent | undefined {
	let value: unknown;
	try {
		value = JSON.parse(text);
	} catch {
		return undefined;
	}
	const { timestamp, source, event, properties } = value as Readonly<Record<string, unknown>>;
	if (typeof source !== "string" || typeof event !== "string") return undefined;
	const { secs, nanos } = (timestamp ?? {}) as Readonly<Record<string, unknown>>;
	const timestampMs = (typeof secs === "number" ? secs * 1000 : 0) + (typeof nanos === "number" ? nanos / 1e6 : 0);
	return { timestampMs, source, event, properties: textsOf(properties) };
}

function textsOf(value: unknown): Readonly<Record<string, string>> {
	if (typeof value !== "object" || value === null) return {};
	return Object.fromEntries(Object.entries(value).map(([key, text]) => [key, String(text)]));
}

/**
 * Reads events from the FIFO. The VMM holds it open for reading too, so that what it writes while nobody reads waits in the pipe and is never an error.
 * @returns how to stop reading
 * @throws SystemError when the FIFO can't be opened
 */
export function readEvents(fifo: string, onEvent: OnVmmEvent): () => void {
	const parser = new EventParser();
	const stream = new Socket({ fd: openSync(fifo, constants.O_RDONLY | constants.O_NONBLOCK), readable: true, writable: false });
	stream.setEncoding("utf8");
	stream.on("data", (text: string) => {
		for (const event of parser.push(text)) onEvent(event);
	});
	stream.on("error", () => undefined);
	stream.unref();
	return () => stream.destroy();
}
