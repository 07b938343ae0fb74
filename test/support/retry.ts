/** The one bounded retry, for states of the system that no event tells about. */
import { setTimeout as delay } from "node:timers/promises";

const PAUSE_FIRST_MS = 20;
const PAUSE_LAST_MS = 320;

/**
 * Calls `look` until it answers something else than undefined; the pauses double from 20 ms to 320 ms. A throw counts as "not yet".
 * @throws Error that names `what`, with the last throw's message, when the deadline passes.
 */
export async function eventually<T>(what: string, timeoutMs: number, look: () => T | undefined | Promise<T | undefined>): Promise<T> {
	const endMs = performance.now() + timeoutMs;
	let reason = "";
	for (let pauseMs = PAUSE_FIRST_MS; ; pauseMs = Math.min(pauseMs * 2, PAUSE_LAST_MS)) {
		try {
			const seen = await look();
			if (seen !== undefined) return seen;
			reason = "";
		} catch (error) {
			reason = `: ${error instanceof Error ? error.message : String(error)}`;
		}
		if (performance.now() >= endMs) throw new Error(`${what}: not seen within ${timeoutMs} ms${reason}`);
		await delay(pauseMs);
	}
}
