/** What is being made in a pod, or waits for its turn: several containers at a time, each of which its own removal ends, and the pod's removal all of them. */

import { withDeadline } from "../base/deadline.ts";
import { ShimError } from "../base/errors.ts";

interface Making {
	readonly abort: AbortController;
	readonly outcome: Promise<unknown>;
}

/** The makings of one pod. */
export class Makings {
	readonly #podId: string;
	readonly #makings = new Map<string, Making>();

	constructor(podId: string) {
		this.#podId = podId;
	}

	/** True while nothing is being made. */
	get none(): boolean {
		return this.#makings.size === 0;
	}

	/** What becomes of something that is being made; undefined when it is not. */
	find(id: string): Promise<unknown> | undefined {
		return this.#makings.get(id)?.outcome;
	}

	/**
	 * Runs work that `giveUp` may abort.
	 * @param id what is made: a container, or the pod itself; nothing of that name may be on its way
	 */
	run<T>(id: string, work: (abort: AbortController) => Promise<T>): Promise<T> {
		const abort = new AbortController();
		const outcome = work(abort).finally(() => this.#makings.delete(id));
		outcome.catch(() => undefined);
		this.#makings.set(id, { abort, outcome });
		return outcome;
	}

	/**
	 * Aborts what is being made.
	 * @param why what becomes of it: `deleted`, `removed`
	 * @param id one thing alone; left out: all
	 * @returns whether anything was being made
	 */
	abort(why: string, id?: string): boolean {
		const found = [...this.#makings].filter(([name]) => id === undefined || name === id);
		const what = id === undefined || id === this.#podId ? `pod ${this.#podId}` : `container ${id}`;
		for (const [, { abort }] of found) abort.abort(new ShimError("wait.canceled", `${what} is being ${why}`));
		return found.length > 0;
	}

	/**
	 * Waits until what is being made now has ended.
	 * @param id one thing alone; left out: all
	 * @throws ShimError `wait.deadline`
	 */
	async ended(timeoutMs: number, id?: string): Promise<void> {
		const makings = [...this.#makings].filter(([name]) => id === undefined || name === id).map(([, { outcome }]) => outcome);
		if (makings.length === 0) return;
		await withDeadline({ what: `the end of what pod ${this.#podId} was making`, timeoutMs }, () => Promise.allSettled(makings));
	}
}
