/** `--event-monitor`: what happens to the VMM and its VM, as pretty-printed JSON objects one after another. */
import { closeSync, openSync, writeSync } from "node:fs";

/** Where events go: a file (made or cut to nothing) or a descriptor. */
export type EventTarget = { readonly path: string } | { readonly fd: number };

export class EventMonitor {
	#fd: number | undefined;
	readonly #startedNs = process.hrtime.bigint();

	/** Without a target every event is dropped. Throws the operating system's error. */
	constructor(target: EventTarget | undefined) {
		if (target !== undefined) this.#fd = "fd" in target ? target.fd : openSync(target.path, "w", 0o600);
	}

	/** Writes one event: `source` is `vmm`, `vm`, `guest` or `virtio-device`. A reader that went away ends the monitoring, nothing else. */
	emit(source: string, event: string, properties: Readonly<Record<string, string>> | null = null): void {
		if (this.#fd === undefined) return;
		const sinceNs = process.hrtime.bigint() - this.#startedNs;
		const timestamp = { secs: Number(sinceNs / 1_000_000_000n), nanos: Number(sinceNs % 1_000_000_000n) };
		try {
			writeSync(this.#fd, `${JSON.stringify({ timestamp, source, event, properties }, null, 2)}\n\n`);
		} catch (error) {
			// A reader that is slow loses this event and gets the next ones.
			if ((error as NodeJS.ErrnoException).code !== "EAGAIN") this.close();
		}
	}

	close(): void {
		if (this.#fd !== undefined && this.#fd > 2) closeSync(this.#fd);
		this.#fd = undefined;
	}
}
