/** Watches containerds for images that are pulled, and has them prepared before their first pod. */

import { setTimeout as pause } from "node:timers/promises";

import { explain } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { ImageLayers } from "./image-layers.ts";

const FIRST_PAUSE_MS = 1_000;
const MAX_PAUSE_MS = 60_000;
/** Images that wait; what comes beyond is prepared with its first pod. */
const MAX_WAITING = 64;

/** Prepares one image. */
export type PrepareAhead = (address: string, namespace: string, name: string, signal: AbortSignal) => Promise<void>;

/** The watch of a node: one stream of events to each containerd, one preparation at a time. */
export class ImageWatch {
	readonly #containerd: ImageLayers;
	readonly #prepare: PrepareAhead;
	readonly #log: Log | undefined;
	readonly #abort = new AbortController();
	readonly #watched = new Set<string>();
	readonly #waiting = new Map<string, () => Promise<void>>();
	#working = false;

	constructor(containerd: ImageLayers, prepare: PrepareAhead, log: Log | undefined) {
		this.#containerd = containerd;
		this.#prepare = prepare;
		this.#log = log;
	}

	/** Ends the watch and what it prepares. */
	close(): void {
		this.#abort.abort();
		this.#waiting.clear();
	}

	/** Watches a containerd from now on, through its restarts. */
	watch(address: string): void {
		if (this.#watched.has(address) || this.#abort.signal.aborted) return;
		this.#watched.add(address);
		void this.#follow(address);
	}

	async #follow(address: string): Promise<void> {
		const { signal } = this.#abort;
		let pauseMs = FIRST_PAUSE_MS;
		while (!signal.aborted) {
			try {
				for await (const { namespace, name } of this.#containerd.imageEvents(address, signal)) {
					pauseMs = FIRST_PAUSE_MS;
					this.#take(address, namespace, name);
				}
			} catch (error) {
				if (!signal.aborted) this.#log?.debug("no events of images", { address, reason: explain(error) });
			}
			await pause(pauseMs, undefined, { signal, ref: false }).catch(() => undefined);
			pauseMs = Math.min(pauseMs * 2, MAX_PAUSE_MS);
		}
	}

	#take(address: string, namespace: string, name: string): void {
		// Every image has names by digest as well, which are of the same layers.
		if (name.startsWith("sha256:") || this.#waiting.size >= MAX_WAITING) return;
		const { signal } = this.#abort;
		this.#waiting.set(`${address} ${namespace} ${name}`, async () => {
			try {
				await this.#prepare(address, namespace, name, signal);
			} catch (error) {
				if (!signal.aborted) this.#log?.warn("an image could not be prepared ahead", { image: name, reason: explain(error) });
			}
		});
		if (!this.#working) void this.#work();
	}

	async #work(): Promise<void> {
		this.#working = true;
		for (let next = first(this.#waiting); next !== undefined; next = first(this.#waiting)) {
			this.#waiting.delete(next[0]);
			await next[1]();
		}
		this.#working = false;
	}
}

function first<K, V>(map: ReadonlyMap<K, V>): [K, V] | undefined {
	const { value } = map.entries().next();
	return value;
}
