/** Makings of files that several may wait for. */

import { withDeadline } from "../base/deadline.ts";

/** One that runs, and how many wait for it. */
interface Build {
	readonly done: Promise<void>;
	readonly abort: AbortController;
	waiting: number;
}

/** What is being made, by key. */
export class Builds {
	readonly #timeoutMs: number;
	readonly #builds = new Map<string, Build>();

	/** @param timeoutMs how long one waits at most */
	constructor(timeoutMs: number) {
		this.#timeoutMs = timeoutMs;
	}

	/**
	 * Waits until the file of a key is made, however many want it at once. The making is given up when nobody waits any more.
	 * @throws what `make` throws; ShimError wait.deadline, wait.canceled
	 */
	async wait(key: string, what: string, make: (signal: AbortSignal) => Promise<void>, signal: AbortSignal): Promise<void> {
		let build = this.#builds.get(key);
		if (build === undefined) {
			const abort = new AbortController();
			const made: Build = { abort, waiting: 0, done: make(abort.signal).finally(() => this.#forget(key, made)) };
			// Everyone may have given up by the time it fails.
			made.done.catch(() => undefined);
			build = made;
			this.#builds.set(key, build);
		}
		build.waiting += 1;
		try {
			const { done } = build;
			await withDeadline({ what, timeoutMs: this.#timeoutMs, signal }, () => done);
		} finally {
			build.waiting -= 1;
			if (build.waiting === 0) {
				this.#forget(key, build);
				build.abort.abort();
			}
		}
	}

	#forget(key: string, build: Build): void {
		if (this.#builds.get(key) === build) this.#builds.delete(key);
	}
}
