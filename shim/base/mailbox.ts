/** A mailbox: calls that change one thing run one after another, in the order of their arrival. */

import { ShimError } from "./errors.ts";

/** Runs tasks one at a time. */
export class Mailbox {
	readonly #owner: string;
	readonly #limit: number;
	#length = 0;
	#tail: Promise<unknown> = Promise.resolve();

	/**
	 * @param owner whose mailbox it is, for messages
	 * @param limit how many tasks may wait or run; one more is refused
	 */
	constructor(owner: string, limit = 64) {
		this.#owner = owner;
		this.#limit = limit;
	}

	/**
	 * Runs `task` after all earlier ones have ended, whatever their outcome.
	 * @param always it is taken when the mailbox is full, too: what ends things must never be refused
	 * @throws ShimError `busy` when the mailbox is full; else what `task` throws
	 */
	run<T>(task: () => Promise<T>, { always = false }: { readonly always?: boolean } = {}): Promise<T> {
		if (this.#length >= this.#limit && !always) {
			return Promise.reject(new ShimError("busy", `${this.#owner} has ${this.#limit} calls waiting`));
		}
		this.#length += 1;
		const outcome = this.#tail.then(task, task).finally(() => {
			this.#length -= 1;
		});
		this.#tail = outcome.catch(() => undefined);
		return outcome;
	}
}
