/** The end of a daemon that nobody needs: one that was started by mistake, where a broken configuration sent its starter. */

/** What is watched, and what happens then. */
export interface IdleEndOptions {
	/** How long nobody must have been connected. */
	readonly idleMs: number;
	/** True while there is something to stay for although nobody is connected. */
	readonly busy: () => boolean;
	readonly end: () => void;
}

/** Calls `end` some time after the last connection has closed. */
export class IdleEnd {
	readonly #options: IdleEndOptions;
	#timer: NodeJS.Timeout | undefined;

	/** The time runs from here on when nobody connects at all. */
	constructor(options: IdleEndOptions) {
		this.#options = options;
		this.#arm();
	}

	/** Tells how many connections there are now. */
	connections(count: number): void {
		clearTimeout(this.#timer);
		if (count === 0) this.#arm();
	}

	#arm(): void {
		this.#timer = setTimeout(() => {
			if (this.#options.busy()) this.#arm();
			else this.#options.end();
		}, this.#options.idleMs);
		this.#timer.unref();
	}
}
