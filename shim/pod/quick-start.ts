/** A VM by a quick way, and by a boot when that fails: a pod must not fail for what was there to make it faster. */

import { explain, ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";

/** A quick way to a VM. */
export interface QuickWay<T> {
	/** For people: `a VM of the pool`. */
	readonly what: string;
	/**
	 * Makes the VM.
	 * @param entered to be called before the first thing of the pod goes into the VM: a failure after it is the pod's
	 */
	start(entered: () => void): Promise<T>;
	/** Told of each failure that is not the pod's own. */
	failed(error: unknown): void;
	/** Ends what there is of that VM, so that another one can be in its place. @throws when something of it stays */
	discard(): Promise<void>;
	/** The sure way. */
	boot(): Promise<T>;
}

/** The start that the VM is for. */
export interface QuickContext {
	readonly signal: AbortSignal;
	readonly log: Log;
	/** What the pod brings: a failure of it says nothing of the VM. */
	readonly brought: readonly (Promise<unknown> | undefined)[];
}

/**
 * Makes a VM by the quick way; if that fails before anything of the pod is in it, ends it and boots another one.
 * @throws the failure of the quick way when the pod is given up, has failed itself, is in the VM, had no more time, or when the VM does not go; else what the
 * boot throws
 */
export async function quickly<T>(way: QuickWay<T>, { signal, log, brought }: QuickContext): Promise<T> {
	let podsOwn = false;
	for (const part of brought) part?.catch(() => (podsOwn = true));
	let inside = false;
	try {
		return await way.start(() => (inside = true));
	} catch (error) {
		if (signal.aborted || podsOwn) throw error;
		way.failed(error);
		// The time of a whole start is over: it went into what the pod brings, or there is none left for another try.
		if (inside || (error instanceof ShimError && error.reason === "vmm.boot-timeout")) throw error;
		log.warn(`${way.what} is of no use, and nothing of the pod is in it: the pod boots one of its own`, { reason: explain(error) });
		try {
			await way.discard();
		} catch (left) {
			log.error(`${way.what} that is of no use does not go`, left);
			throw error;
		}
		signal.throwIfAborted();
		return await way.boot();
	}
}
