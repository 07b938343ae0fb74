/**
 * Events that must reach containerd although snpd may be killed at any instant: each is a file on tmpfs from before it is sent until containerd
 * has taken it. The next snpd sends what is left, so such an event comes at least once.
 */

import { mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";

import * as v from "valibot";

import { errnoOf, messageOf } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { replaceFile } from "../base/replace-file.ts";
import type { ContainerdEvent, EventPublishers, EventTarget } from "./publisher.ts";

const SUFFIX = ".json";
/** So many digits that names sort like their numbers. */
const DIGITS = 16;

const entrySchema = v.object({
	target: v.object({ ttrpcAddress: v.string(), address: v.string(), publishBinary: v.string() }),
	namespace: v.string(),
	topic: v.string(),
	typeUrl: v.string(),
	value: v.pipe(v.string(), v.base64()),
	atMs: v.number(),
});

/** The lasting events of all pods, in their order. */
export class Outbox {
	readonly #folder: string;
	readonly #publishers: EventPublishers;
	readonly #log: Log;
	#next = 1;
	#closed = false;

	/** @param folder made when it is missing */
	constructor(folder: string, publishers: EventPublishers, log: Log) {
		this.#folder = folder;
		this.#publishers = publishers;
		this.#log = log;
	}

	/** Sends what an earlier snpd could not. To be called before the first `publish`. */
	resume(): void {
		for (const name of this.#names()) {
			const path = join(this.#folder, name);
			this.#next = Math.max(this.#next, (Number.parseInt(name, 10) || 0) + 1);
			const found = this.#read(path);
			if (found === undefined) rmSync(path, { force: true, recursive: true });
			else this.#send(path, found.target, found.event);
		}
	}

	/**
	 * Writes an event down, and queues it. What can't be written is sent all the same, with a line in the log.
	 * Sending begins after the caller's turn: what it writes until then is on disk before containerd hears of anything.
	 */
	publish(target: EventTarget, event: ContainerdEvent): void {
		const at = event.at ?? new Date();
		const path = join(this.#folder, `${String(this.#next++).padStart(DIGITS, "0")}${SUFFIX}`);
		const { ttrpcAddress, address, publishBinary } = target;
		const entry: v.InferInput<typeof entrySchema> = {
			target: { ttrpcAddress, address, publishBinary },
			namespace: event.namespace,
			topic: event.topic,
			typeUrl: event.typeUrl,
			value: Buffer.from(event.value).toString("base64"),
			atMs: at.getTime(),
		};
		try {
			mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
			replaceFile(path, JSON.stringify(entry));
		} catch (error) {
			this.#log.error("an event is lost if snpd ends before containerd takes it", error, { topic: event.topic });
		}
		this.#send(path, target, { ...event, at });
	}

	/** What is not delivered from now on stays for the next snpd. To be called before the publishers are closed. */
	close(): void {
		this.#closed = true;
	}

	#send(path: string, target: EventTarget, event: ContainerdEvent): void {
		void this.#publishers
			.for(target)
			.publish(event)
			.then(() => {
				if (!this.#closed) rmSync(path, { force: true });
			});
	}

	#names(): string[] {
		try {
			return readdirSync(this.#folder).sort();
		} catch (error) {
			if (errnoOf(error) !== "ENOENT") this.#log.error("events that an earlier snpd did not send can't be read", error);
			return [];
		}
	}

	#read(path: string): { readonly target: EventTarget; readonly event: ContainerdEvent } | undefined {
		if (!path.endsWith(SUFFIX)) return undefined;
		try {
			const { target, value, atMs, ...rest } = v.parse(entrySchema, JSON.parse(readFileSync(path, "utf8")));
			return { target, event: { ...rest, value: Buffer.from(value, "base64"), at: new Date(atMs) } };
		} catch (error) {
			this.#log.warn("an event of an earlier snpd is lost: its file is damaged", { path, reason: messageOf(error) });
			return undefined;
		}
	}
}
