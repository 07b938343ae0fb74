/** SIGKILL ends a container whatever its guest does: one that doesn't answer, or doesn't let the container end, loses its VM. Otherwise it could keep its pod for ever. */

import { ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { GuestProcess } from "./process.ts";

/** What forcing an end needs. */
export interface ForcedEndOptions {
	/** The container's first process. */
	readonly process: GuestProcess;
	/** Has the guest send SIGKILL. */
	readonly signal: () => Promise<void>;
	/** Ends the VM, and with it the process. */
	readonly endVm: () => Promise<unknown>;
	/** How long the guest, once it has taken the signal, may take to tell of the end, in milliseconds. */
	readonly endMs: number;
	readonly log: Log;
}

/**
 * Sends SIGKILL to a container, and sees to it that the container ends. Returns when the guest has taken the signal, or its VM was ended.
 * @throws ShimError what `signal` throws, but for the end of the guest's time to answer
 */
export async function killForSure({ process, signal, endVm, endMs, log }: ForcedEndOptions): Promise<void> {
	try {
		await signal();
	} catch (error) {
		if (!(error instanceof ShimError && error.reason === "wait.deadline")) throw error;
		log.error("the guest does not take SIGKILL: its VM is ended", error, { process: process.name });
		await endVm();
		return;
	}
	const timer = setTimeout(() => {
		if (process.endKnown) return;
		log.warn("a process outlasts SIGKILL in the guest: its VM is ended", { process: process.name, waitedMs: endMs });
		endVm().catch((error: unknown) => log.error("the VM does not end", error));
	}, endMs);
	timer.unref();
	void process.exited.then(() => clearTimeout(timer));
}
