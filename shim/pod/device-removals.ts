/** Devices that the guest lets go: the VMM answers a removal before that, and keeps the device's files open until then. */

import { deferred, withDeadline } from "../base/deadline.ts";
import type { Log } from "../base/log.ts";
import type { VmmEvent } from "../vmm/launcher.ts";

type Deferred = ReturnType<typeof deferred<undefined>>;

/** Hears the VMM's events of one VM. */
export class DeviceRemovals {
	readonly #waiting = new Map<string, Deferred>();

	/** Takes one event of the VMM (Cloud Hypervisor: `vm` `device-removed`, with the device's id). */
	accept({ event, properties }: VmmEvent): void {
		const id = properties["id"];
		if (event !== "device-removed" || id === undefined) return;
		this.#waiting.get(id)?.resolve(undefined);
	}

	/**
	 * Asks for a device's removal, and waits until the guest has let it go; a guest that does not is logged after a while.
	 * @param ask sends the request
	 * @throws what `ask` throws
	 */
	async remove(id: string, ask: () => Promise<void>, options: { readonly timeoutMs: number; readonly log: Log }): Promise<void> {
		const gone = deferred<undefined>();
		this.#waiting.set(id, gone);
		try {
			await ask();
			const wait = { what: `the guest's leave of device ${id}`, timeoutMs: options.timeoutMs };
			await withDeadline(wait, () => gone.promise).catch((error: unknown) =>
				options.log.warn("the guest does not let a device go", { device: id, error: error instanceof Error ? error.message : "" }),
			);
		} finally {
			this.#waiting.delete(id);
		}
	}
}
