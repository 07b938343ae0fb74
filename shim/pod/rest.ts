/**
 * What is left of a pod when its users need not wait any more: a process that SIGKILL has reached but that still gives its memory back, what the VM had in
 * the pod's network namespace, the control group that the process is leaving, and the journal that tells a new snpd of all of them.
 */

import { messageOf } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Release } from "../base/scope.ts";
import type { HostCgroup } from "../host/cgroups.ts";
import type { Journal } from "./journal.ts";

/** A large VM, and more so a confidential one, takes minutes to give its memory back: so many times its end is waited for, ten seconds each. */
const END_ATTEMPTS = 60;

/** The parts of it. */
export interface RestParts {
	/** Ends the VM, and waits for the end of its process. */
	readonly endVm: Release;
	/** Leaves the network's namespace as it was; undefined when nothing of the pod is in one. */
	readonly endNetwork: Release | undefined;
	readonly cgroup: HostCgroup | undefined;
	readonly journal: Journal;
	readonly log: Log;
}

/** The rest of one pod. The journal goes last; it stays where something else does, so that a later snpd tries again. */
export class Rest {
	readonly #parts: RestParts;
	#ended: Promise<void> = Promise.resolve();
	#over = false;

	constructor(parts: RestParts) {
		this.#parts = parts;
	}

	/** Begins to end the VM; settles, without a failure, with the end of its process. */
	async end(): Promise<void> {
		this.#ended = (async () => await this.#parts.endVm())();
		await this.#ended.then(
			() => {
				this.#over = true;
			},
			() => undefined,
		);
	}

	async #vmGone(): Promise<void> {
		for (let attempt = 1; ; attempt++) {
			try {
				return await this.#ended;
			} catch (error) {
				if (attempt === END_ATTEMPTS) throw error;
				if (attempt === 1) this.#parts.log.warn("a VM takes long to end", { reason: messageOf(error) });
				this.#ended = (async () => await this.#parts.endVm())();
			}
		}
	}

	/** Removes everything if that takes no time. @returns whether nothing is left */
	removeNow(): boolean {
		const { endNetwork, cgroup, journal } = this.#parts;
		if (!this.#over || endNetwork !== undefined || cgroup?.removeEmpty() === false) return false;
		journal.remove();
		return true;
	}

	/** Removes everything in its time; what can't be removed is logged. */
	async remove(): Promise<void> {
		const { endNetwork, cgroup, journal, log } = this.#parts;
		try {
			await endNetwork?.();
			await this.#vmGone();
			await cgroup?.remove();
			journal.remove();
		} catch (error) {
			log.error("something of a pod is left to the next snpd", error);
		}
	}
}
