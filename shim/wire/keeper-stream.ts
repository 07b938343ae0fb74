/** One container stdio stream that a keeper moves. */

import { deferred } from "../base/deadline.ts";
import { ShimError } from "../base/errors.ts";
import type { CloseMode, StreamState } from "./link.ts";

/** What a stream was made with, for messages. */
export interface StreamPlace {
	readonly podId: string;
	readonly id: number;
}

/** A stream between a FIFO and the guest, moved by the keeper. Its promises never count as unhandled rejections. */
export class KeeperStream {
	readonly id: number;
	/** The vsock stream is connected; `hostPort` is the number in the VMM's `OK` line. Rejects with ShimError `stream.failed`. */
	readonly opened: Promise<{ readonly hostPort: number }>;
	/** Every byte was moved; `bytes` is how many. Rejects with ShimError `stream.failed`. */
	readonly done: Promise<{ readonly bytes: number }>;
	readonly #opened = deferred<{ hostPort: number }>();
	readonly #done = deferred<{ bytes: number }>();
	readonly #place: StreamPlace;
	readonly #sendClose: (mode: CloseMode) => void;
	#finished = false;

	constructor(place: StreamPlace, sendClose: (mode: CloseMode) => void) {
		this.id = place.id;
		this.#place = place;
		this.#sendClose = sendClose;
		this.opened = this.#opened.promise;
		this.done = this.#done.promise;
	}

	/** True when the stream is done or has failed. */
	get finished(): boolean {
		return this.#finished;
	}

	/**
	 * Asks the keeper to end the stream: `drain` forwards what the FIFO holds and then closes (stdin), `abort` closes at once; `done` tells
	 * when it happened. `linger` leaves the rest of an output to the keeper and its reader: nothing is told of it any more.
	 * On a finished stream it lets the keeper forget it.
	 */
	close(mode: CloseMode): void {
		this.#sendClose(mode);
	}

	/** Takes a state from the keeper. States after the end are ignored. */
	accept(state: StreamState): void {
		if (this.#finished || state.state === "opening") return;
		if (state.state === "failed") {
			this.fail(state.error === "" ? "the keeper gave no reason" : state.error);
			return;
		}
		this.#opened.resolve({ hostPort: state.hostPort });
		if (state.state !== "done") return;
		this.#finished = true;
		this.#done.resolve({ bytes: state.bytes });
	}

	/** Ends the stream as failed, for the reason given. */
	fail(why: string): void {
		if (this.#finished) return;
		this.#finished = true;
		const error = new ShimError("stream.failed", `stdio stream ${this.#place.id} of pod ${this.#place.podId} failed: ${why}`);
		this.#opened.reject(error);
		this.#done.reject(error);
	}
}
