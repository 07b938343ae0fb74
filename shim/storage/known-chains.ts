/** The chain ids of root file systems that containerd was asked for once: the next container of an image costs no question. */

/** As many images as a node has at a time, and more; the one that was asked for longest ago is forgotten. */
const MAX_CHAINS = 512;

/** Chain ids by the identities of layers (see `imageKey`), which no other layers ever have. */
export class KnownChains {
	readonly #chains = new Map<string, string>();

	/**
	 * The chain id of layers.
	 * @param identity undefined for layers that can't be told from others: those are asked for each time
	 * @param ask asks containerd; what it throws is thrown, and not remembered
	 */
	async of(identity: string | undefined, ask: () => Promise<string>): Promise<string> {
		if (identity === undefined) return await ask();
		const known = this.#chains.get(identity) ?? (await ask());
		this.#chains.delete(identity);
		this.#chains.set(identity, known);
		const [oldest] = this.#chains.keys();
		if (this.#chains.size > MAX_CHAINS && oldest !== undefined) this.#chains.delete(oldest);
		return known;
	}
}
