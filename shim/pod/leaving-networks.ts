/** Network namespaces that pods are still leaving after their removal was answered: who joins one of them next waits for that. */

import { withDeadline } from "../base/deadline.ts";
import type { NamespaceAddress } from "../network/space.ts";

/** The end of a VM may take ten seconds, and so may the removal of what it had. */
const LEAVE_MS = 30_000;

/** The namespaces of one node, by their identities. */
export class LeavingNetworks {
	readonly #ends = new Map<string, Promise<void>>();

	/** @param end settles, without a failure, when nothing of the pod is in the namespace any more */
	add({ id }: NamespaceAddress, end: Promise<void>): void {
		// Of two that leave the same one, the later has waited for the earlier.
		this.#ends.set(id, end);
		void end.then(() => {
			if (this.#ends.get(id) === end) this.#ends.delete(id);
		});
	}

	/**
	 * Waits until nobody is leaving a namespace.
	 * @throws ShimError `network.busy` when that takes too long, `wait.canceled`
	 */
	async left({ id, path }: NamespaceAddress, signal: AbortSignal): Promise<void> {
		const end = this.#ends.get(id);
		const what = `the end of another VM in the network namespace ${path}`;
		if (end !== undefined) await withDeadline({ what, timeoutMs: LEAVE_MS, signal, reason: "network.busy" }, () => end);
	}
}
