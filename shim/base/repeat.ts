/** Work that is asked for more often than it is done: one run at a time, and one more when it was asked for meanwhile. */

/** One kind of such work. */
export class Repeat {
	readonly #work: () => Promise<void>;
	#running: Promise<void> | undefined;
	#again = false;
	#closed = false;

	/** @param work must not reject; it may ask for itself */
	constructor(work: () => Promise<void>) {
		this.#work = work;
	}

	/** Has the work done with what is true by now. */
	ask(): void {
		this.#again = true;
		this.#running ??= this.#run().finally(() => {
			this.#running = undefined;
			// One that was asked for as the last one ended.
			if (this.#again && !this.#closed) this.ask();
		});
	}

	async #run(): Promise<void> {
		while (this.#again && !this.#closed) {
			this.#again = false;
			await this.#work();
		}
	}

	/** Begins no run any more. @returns settles when the last one is over */
	async close(): Promise<void> {
		this.#closed = true;
		await this.#running;
	}
}
