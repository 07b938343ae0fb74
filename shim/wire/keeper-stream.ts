/** One container stdio stream that a keeper moves. */

import { deferred } from "../base/deadline.ts";
import type { Deferred } from "../base/deadline.ts";
import { ShimError } from "../base/errors.ts";
import type { CloseMode, StreamState } from "./link.ts";

/** What a stream was made with, for messages. */
export interface StreamPlace {
	readonly podId: string;
	readonly id: number;
}

/** How far an output's reader is. */
export interface Reading {
	/** How many bytes the keeper has moved. */
	readonly bytes: number;
	/** How many bytes are on the host and were not read. */
	readonly unread: number;
	/** Whether anybody but the keeper has the FIFO open for reading. */
	readonly reader: boolean;
}

/** What a stream asks of its keeper. */
export interface StreamRequests {
	readonly close: (mode: CloseMode) => void;
	readonly ask: () => void;
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
	readonly #send: StreamRequests;
	#finished = false;
	#bytes = 0;
	#asked: Deferred<Reading> | undefined;

	constructor(place: StreamPlace, send: StreamRequests) {
		this.id = place.id;
		this.#place = place;
		this.#send = send;
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
		this.#send.close(mode);
	}

	/**
	 * Asks the keeper how far the output's reader is. An ended stream has nothing unread and no reader. Never rejects; never settles with a keeper
	 * that does not know the question: who waits needs a deadline.
	 */
	ask(): Promise<Reading> {
		if (this.#finished) return Promise.resolve({ bytes: this.#bytes, unread: 0, reader: false });
		if (this.#asked === undefined) {
			this.#asked = deferred();
			this.#send.ask();
		}
		return this.#asked.promise;
	}

	/** Takes a state from the keeper. States after the end are ignored. */
	accept(state: StreamState): void {
		if (this.#finished || state.state === "opening") return;
		this.#bytes = state.bytes;
		if (state.state === "failed") {
			this.fail(state.error === "" ? "the keeper gave no reason" : state.error);
			return;
		}
		this.#opened.resolve({ hostPort: state.hostPort });
		if (state.reader !== undefined) this.#answer({ bytes: state.bytes, unread: state.unread ?? 0, reader: state.reader });
		if (state.state !== "done") return;
		this.#finished = true;
		this.#answer({ bytes: state.bytes, unread: 0, reader: false });
		this.#done.resolve({ bytes: state.bytes });
	}

	/** Ends the stream as failed, for the reason given. */
	fail(why: string): void {
		if (this.#finished) return;
		this.#finished = true;
		this.#answer({ bytes: this.#bytes, unread: 0, reader: false });
		const error = new ShimError("stream.failed", `stdio stream ${this.#place.id} of pod ${this.#place.podId} failed: ${why}`);
		this.#opened.reject(error);
		this.#done.reject(error);
	}

	#answer(reading: Reading): void {
		this.#asked?.resolve(reading);
		this.#asked = undefined;
	}
}
