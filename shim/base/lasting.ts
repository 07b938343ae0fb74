/**
 * Listening to something that lasts much longer than the listener, such as the end of a VM. A promise keeps every reaction that was ever put on it,
 * with all that the reaction can reach, until it settles; here a listener can go.
 */

interface Listeners {
	readonly waiting: Set<() => void>;
	settled: boolean;
}

const listenersOf = new WeakMap<Promise<unknown>, Listeners>();

/**
 * Calls `listener` once when `lasting` has settled, in a later turn; when it has already, too.
 * @returns how to stop listening; safe to call at any time
 */
export function listen(lasting: Promise<unknown>, listener: () => void): () => void {
	const known = listenersOf.get(lasting) ?? observe(lasting);
	const own = (): void => listener();
	known.waiting.add(own);
	if (known.settled) queueMicrotask(() => known.waiting.delete(own) && own());
	return () => void known.waiting.delete(own);
}

function observe(lasting: Promise<unknown>): Listeners {
	const listeners: Listeners = { waiting: new Set(), settled: false };
	listenersOf.set(lasting, listeners);
	const tell = (): void => {
		listeners.settled = true;
		for (const listener of listeners.waiting) {
			listeners.waiting.delete(listener);
			listener();
		}
	};
	lasting.then(tell, tell);
	return listeners;
}

/**
 * What settles first: `work`, or `lasting`. As Promise.race, but leaves nothing with `lasting` once the work has settled; a late failure of
 * the work is swallowed.
 */
export function raceLasting<T, L>(work: Promise<T>, lasting: Promise<L>): Promise<T | L> {
	return new Promise<T | L>((resolve, reject) => {
		const stop = listen(lasting, () => resolve(lasting));
		work.then(resolve, reject).finally(stop);
	});
}
