/** The pod's side of its keeper: here, away, and back. */

import { deferred } from "../base/deadline.ts";
import { ShimError } from "../base/errors.ts";
import { startTimeOf } from "../host/processes.ts";
import type { Mover } from "./ports.ts";

/** A process that goes by this number only as long as it started then (ticks since the host's boot); null: that is not known. */
export interface KeeperProcess {
	readonly pid: number;
	readonly startTime: string | null;
}

/** Whether the pod's keeper is here. */
export class KeeperEnd {
	#process: KeeperProcess | undefined;
	readonly #podId: string;
	#mover: Mover | undefined;
	#here = deferred<undefined>();

	constructor(podId: string) {
		this.#podId = podId;
	}

	/** @throws ShimError `stream.failed` when it is away */
	get mover(): Mover {
		if (this.#mover === undefined) throw new ShimError("stream.failed", `pod ${this.#podId}: its keeper is not connected`);
		return this.#mover;
	}

	/** The keeper's process, also while it is away; undefined while it was never here. */
	get process(): KeeperProcess | undefined {
		return this.#process;
	}

	/** Takes what the journal holds. */
	restore(process: KeeperProcess | undefined): void {
		this.#process = process;
	}

	/** True while it is connected. */
	get attached(): boolean {
		return this.#mover !== undefined;
	}

	/** It is connected (again). */
	attach(mover: Mover): void {
		this.#mover = mover;
		this.#process = { pid: mover.pid, startTime: startTimeOf(mover.pid)?.toString() ?? null };
	}

	/** The streams that it moves were taken up. */
	ready(): void {
		this.#here.resolve(undefined);
	}

	/** Settles when it is connected and its streams are known. */
	get here(): Promise<undefined> {
		return this.#here.promise;
	}

	/** It is away. */
	detach(): void {
		this.#mover = undefined;
		this.#here = deferred();
	}

	/** Ends it, if it is here. */
	end(): void {
		this.#mover?.end();
	}
}
