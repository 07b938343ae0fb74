/** What is left of pods after their removal was answered: VMs that end, control groups, interfaces. */
import { setTimeout as delay } from "node:timers/promises";
import type { Leftovers } from "../test/support/leftovers.ts";

const PAUSE_MS = 5;
const WAIT_MS = 10_000;

/**
 * Waits until nothing of a scenario's pods is left. A look takes some twenty milliseconds.
 * @param leftovers what was there when the scenario began
 * @throws Error that names what is left after ten seconds
 */
export async function untilGivenBack(leftovers: Leftovers): Promise<void> {
	const endMs = performance.now() + WAIT_MS;
	for (;;) {
		// containerd's records are the bench's to remove.
		const left = await leftovers.list(false);
		if (left.length === 0) return;
		if (performance.now() > endMs) throw new Error(`not given back within ${WAIT_MS / 1000} s:\n  ${left.join("\n  ")}`);
		await delay(PAUSE_MS);
	}
}
