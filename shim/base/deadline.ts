/** Deadlines: every wait of the shim has one, and says what was waited for when it passes. */

import { MAX_TIMER_MS } from "./clock.ts";
import { ShimError } from "./errors.ts";
import type { ErrorReason } from "./catalogue.ts";

/** How a wait is bounded. */
export interface Wait {
	/** What is waited for, for the message: `the guest agent of pod abc`. */
	readonly what: string;
	readonly timeoutMs: number;
	/** The caller's own end: aborting it ends the wait as canceled, unless its reason is a ShimError, which is then thrown. */
	readonly signal?: AbortSignal | undefined;
	/** The reason given when the time is up; `wait.deadline` unless told. */
	readonly reason?: ErrorReason;
	readonly remedy?: string;
}

/**
 * Runs `work` with a signal that aborts when the time is up or the caller gives up.
 * The wait ends then even if `work` ignores its signal; `work`'s late failure is swallowed, its late success lost, so it must clean up on abort.
 * @throws ShimError with the reason of the wait, or `wait.canceled`
 */
export async function withDeadline<T>(wait: Wait, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
	const controller = new AbortController();
	let fail: (error: unknown) => void = () => undefined;
	const ended = new Promise<never>((_, reject) => {
		fail = reject;
	});
	const end = (error: ShimError): void => {
		controller.abort(error);
		fail(error);
	};
	const timer = setTimeout(
		() => {
			const options = wait.remedy === undefined ? {} : { remedy: wait.remedy };
			end(new ShimError(wait.reason ?? "wait.deadline", `${wait.what}: no result within ${wait.timeoutMs} ms`, options));
		},
		Math.min(wait.timeoutMs, MAX_TIMER_MS),
	);
	const onAbort = (): void => end(canceled(wait.what, wait.signal?.reason));
	if (wait.signal?.aborted === true) onAbort();
	else wait.signal?.addEventListener("abort", onAbort, { once: true });
	try {
		if (controller.signal.aborted) return await ended;
		return await Promise.race([work(controller.signal), ended]);
	} finally {
		clearTimeout(timer);
		wait.signal?.removeEventListener("abort", onAbort);
		ended.catch(() => undefined);
	}
}

/**
 * As `withDeadline`, for work that holds something: once it is given up, its own end is awaited too, for at most `graceMs`.
 * @param onStuck called when the work has not ended by then
 */
export async function withDeadlineAndEnd<T>(
	wait: Wait & { readonly graceMs: number },
	work: (signal: AbortSignal) => Promise<T>,
	onStuck: () => void = () => undefined,
): Promise<T> {
	let running: Promise<unknown> = Promise.resolve();
	try {
		return await withDeadline(wait, (signal) => {
			const started = work(signal);
			running = started.catch(() => undefined);
			return started;
		});
	} finally {
		await withDeadline({ what: `the end of ${wait.what}`, timeoutMs: wait.graceMs }, () => running).catch(onStuck);
	}
}

function canceled(what: string, reason: unknown): ShimError {
	return reason instanceof ShimError ? reason : new ShimError("wait.canceled", `${what}: canceled`, { cause: reason });
}

/** A promise that another party settles; waiting for it is bounded by `withDeadline`. */
export interface Deferred<T> {
	readonly promise: Promise<T>;
	readonly resolve: (value: T) => void;
	readonly reject: (error: unknown) => void;
}

/** Makes a Deferred whose rejection never counts as unhandled: some are rejected with nobody waiting. */
export function deferred<T>(): Deferred<T> {
	let resolve: (value: T) => void = () => undefined;
	let reject: (error: unknown) => void = () => undefined;
	const promise = new Promise<T>((onValue, onError) => {
		resolve = onValue;
		reject = onError;
	});
	promise.catch(() => undefined);
	return { promise, resolve, reject };
}
