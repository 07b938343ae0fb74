/**
 * How long the end of a process is held back for the reader of its last output. containerd 2's client closes its FIFOs as soon as it
 * hears of the end, so what it has not read by then is lost; a reader that never reads must not keep a pod from ending, though.
 */

import { ShimError } from "../base/errors.ts";
import { withDeadline } from "../base/deadline.ts";
import type { MovedStream } from "./ports.ts";

/**
 * How long a reader may take nothing. One that reads at all comes back within this: the next program of a pipeline that works on what it
 * has, a person who pages through it. One that sleeps longer can't be told from one that has forgotten the FIFO.
 */
const IDLE_READER_MS = 60_000;
/** Far more than pipes, vsock and sockets hold between a process and its FIFO: what comes after so much was written by another process. */
const OWN_BYTES_MAX = 4 * 1024 * 1024;
/** For the keeper's answer. One that was started before this snpd may not know the question. */
const ANSWER_MS = 2_000;
/** Shortest time between two questions. */
const ASK_MIN_MS = 100;

/** What is waited for. */
export interface LastOutputOptions {
	/** The process, for messages. */
	readonly name: string;
	readonly streams: readonly MovedStream[];
	/** How long to wait whether somebody reads or not, in milliseconds; then this is how often the keeper is asked. With 0 nothing is waited for. */
	readonly drainMs: number;
	/** The process, or its VM, was killed: its reader gets `drainMs` without progress only, and no more than a minute in all. */
	readonly killed: boolean;
	/** Called once, when `drainMs` is over and the wait goes on for a reader. */
	readonly onHeld?: () => void;
}

/** What the keeper says of all streams together. */
interface Look {
	/** How many bytes readers have taken so far. */
	readonly taken: number;
	/** Somebody reads. */
	readonly reader: boolean;
	/** Somebody reads who has something left to take. Otherwise more may be on its way in the guest: it gets `drainMs` in all. */
	readonly wanted: boolean;
}

/** The wait for one ended process's output. */
export class LastOutput {
	readonly #options: LastOutputOptions;
	readonly #over = new AbortController();
	/** When the process was killed, by the clock of `performance`. */
	#killedAtMs: number | undefined;
	#wake: () => void = () => undefined;

	constructor(options: LastOutputOptions) {
		this.#options = options;
		if (options.killed) this.#killedAtMs = performance.now();
	}

	/** The process is killed, also when it has ended by now: from here on a reader that takes nothing has little time. */
	hurry(): void {
		this.#killedAtMs ??= performance.now();
		this.#wake();
	}

	/** Ends the wait: nobody is there any more to whom the end could come too early. */
	giveUp(): void {
		this.#end(new ShimError("wait.canceled", `the output of ${this.#options.name}: given up with its process`));
	}

	/**
	 * Waits until all output was taken. To be called once.
	 * @throws ShimError `wait.deadline` when the end must be told before, for the reason in its text; `stream.failed`; `wait.canceled` after `giveUp`
	 */
	async wait(): Promise<void> {
		const { streams } = this.#options;
		const done = Promise.all(streams.map((stream) => stream.done)).then(() => undefined);
		const end = (): void => this.#end(undefined);
		done.then(end, end);
		await Promise.race([done, this.#watch()]);
		const reason: unknown = this.#over.signal.reason;
		if (reason instanceof ShimError) throw reason;
		await done;
	}

	/** Returns when the wait is over; throws when it has to be. */
	async #watch(): Promise<void> {
		const { drainMs } = this.#options;
		const clock = { beganAtMs: performance.now(), movedAtMs: performance.now(), lookedAtMs: 0, dryMs: 0 };
		const asked = this.#look();
		await this.#pause(drainMs);
		const begin = drainMs === 0 ? undefined : await asked;
		let before = begin;
		for (let held = false; ; ) {
			const now = begin === undefined ? undefined : await this.#look();
			if (this.#over.signal.aborted) return;
			if (now === undefined || begin === undefined || before === undefined) throw this.#late(`not moved within ${drainMs} ms`);
			const nowMs = performance.now();
			if (now.taken !== before.taken) clock.movedAtMs = nowMs;
			if (held && !before.wanted) clock.dryMs += nowMs - clock.lookedAtMs;
			const drainLeftMs = clock.beganAtMs + drainMs - nowMs;
			const idleLeftMs = clock.movedAtMs + this.#idleMs - nowMs;
			if (drainLeftMs <= 0) {
				const flows = held || begin.wanted || now.taken !== begin.taken;
				if (!now.reader) throw this.#late(`nobody reads what is left after ${drainMs} ms`);
				if (!now.wanted && (!flows || clock.dryMs >= drainMs)) throw this.#late("another process of the guest holds it open");
				if (!held) this.#options.onHeld?.();
				held = true;
			}
			if (now.taken - begin.taken > OWN_BYTES_MAX) throw this.#late("another process of the guest goes on writing it");
			if (idleLeftMs <= 0) throw this.#late(`its reader has taken nothing for ${this.#idleMs} ms`);
			if (this.#killedAtMs !== undefined && nowMs - this.#killedAtMs >= Math.max(drainMs, IDLE_READER_MS)) {
				throw this.#late("its reader is too slow for a process that was killed");
			}
			before = now;
			clock.lookedAtMs = nowMs;
			await this.#pause(Math.min(drainLeftMs > 0 ? drainLeftMs : Math.max(drainMs, ASK_MIN_MS), idleLeftMs));
		}
	}

	/** How long the reader may take nothing, as things are now. */
	get #idleMs(): number {
		const { drainMs } = this.#options;
		return this.#killedAtMs === undefined ? Math.max(drainMs, IDLE_READER_MS) : drainMs;
	}

	#late(why: string): ShimError {
		return new ShimError("wait.deadline", `the output of ${this.#options.name}: ${why}`);
	}

	/** Nothing when the keeper does not answer. */
	async #look(): Promise<Look | undefined> {
		const { streams, name } = this.#options;
		const wait = { what: `the keeper's word on the readers of ${name}`, timeoutMs: ANSWER_MS, signal: this.#over.signal };
		try {
			const told = await withDeadline(wait, () => Promise.all(streams.map((stream) => stream.ask())));
			return {
				taken: told.reduce((sum, { bytes, unread }) => sum + bytes - unread, 0),
				reader: told.some(({ reader }) => reader),
				wanted: told.some(({ reader, unread }) => reader && unread > 0),
			};
		} catch {
			return undefined;
		}
	}

	/** Until the time is over, or something has happened. */
	async #pause(timeoutMs: number): Promise<void> {
		if (this.#over.signal.aborted) return;
		await new Promise<void>((resolve) => {
			const timer = setTimeout(resolve, timeoutMs);
			this.#wake = () => {
				clearTimeout(timer);
				resolve();
			};
		});
	}

	#end(reason: ShimError | undefined): void {
		this.#over.abort(reason);
		this.#wake();
	}
}
