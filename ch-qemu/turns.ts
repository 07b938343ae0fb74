/** One thing at a time: requests and what the guest does wait for each other, in the order in which they came. */

const WAITING_MAX = 1024;

export class Turns {
	#last: Promise<void> = Promise.resolve();
	#waiting = 0;

	/** Runs `work` after everything that was asked for before. Throws when 1024 things wait already. */
	run<T>(work: () => Promise<T>): Promise<T> {
		if (this.#waiting >= WAITING_MAX) throw new Error(`${WAITING_MAX} requests wait already`);
		this.#waiting++;
		const result = this.#last.then(work);
		this.#last = result.then(
			() => {
				this.#waiting--;
			},
			() => {
				this.#waiting--;
			},
		);
		return result;
	}
}
