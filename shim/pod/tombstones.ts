/** What is remembered of processes that are deleted: a replayed Delete gets the answer that the first one had. */

import type { Tombstone } from "./journal.ts";
import type { DeleteResult } from "./ports.ts";

/** Older ones are forgotten. */
const MAX_TOMBSTONES = 64;

/** The ends of a pod's deleted processes. */
export class Tombstones {
	#stones: readonly Tombstone[] = [];

	/** All, oldest first. */
	get list(): readonly Tombstone[] {
		return this.#stones;
	}

	/** Takes those of a journal. */
	restore(stones: readonly Tombstone[]): void {
		this.#stones = [...stones];
	}

	/** Remembers one; with an empty `execId` a whole container's. */
	add(containerId: string, execId: string, result: DeleteResult): void {
		this.#stones = [...this.#stones, { containerId, execId, ...result }].slice(-MAX_TOMBSTONES);
	}

	/** The latest of a process. */
	find(containerId: string, execId: string): DeleteResult | undefined {
		return this.#stones.findLast((stone) => stone.containerId === containerId && stone.execId === execId);
	}

	/** True when anything of this container is remembered. */
	knows(containerId: string): boolean {
		return this.#stones.some((stone) => stone.containerId === containerId);
	}
}
