/** A bounded memory of what was used last. */

/** Values by their keys; beyond the bound the one that was used longest ago is forgotten. */
export class Recent<V> {
	readonly #most: number;
	readonly #values = new Map<string, V>();

	/** @param most how many are kept */
	constructor(most: number) {
		this.#most = most;
	}

	/** The value of a key, which is used by that; undefined when there is none. */
	get(key: string): V | undefined {
		const value = this.#values.get(key);
		if (value !== undefined) this.set(key, value);
		return value;
	}

	set(key: string, value: V): void {
		this.#values.delete(key);
		this.#values.set(key, value);
		const [oldest] = this.#values.keys();
		if (this.#values.size > this.#most && oldest !== undefined) this.#values.delete(oldest);
	}

	/** Forgets the value of a key. */
	delete(key: string): void {
		this.#values.delete(key);
	}

	/** Forgets all values of which this holds. */
	deleteIf(holds: (value: V) => boolean): void {
		for (const [key, value] of this.#values) if (holds(value)) this.#values.delete(key);
	}
}
