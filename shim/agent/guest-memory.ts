/** A guest's memory, from the agent's metrics: a text in Prometheus' form, the same from Kata's agent and from ours but for two names. */

import { ShimError } from "../base/errors.ts";

/** Bytes. They are the guest's word. */
export interface GuestMemoryInfo {
	readonly freeBytes: number;
	readonly availableBytes: number;
}

const LINE = /^kata_guest_meminfo\{item="mem_?(free|available)"\} ([0-9.]+(?:e[+-]?[0-9]+)?)$/gmu;

/**
 * Reads what is free, and what is available without swapping.
 * @throws ShimError `guest.protocol` when the text does not say
 */
export function parseGuestMemory(metrics: string): GuestMemoryInfo {
	const found = new Map([...metrics.matchAll(LINE)].map(([, name = "", value]) => [name, Number(value)]));
	const [freeBytes, availableBytes] = [found.get("free"), found.get("available")];
	if (freeBytes === undefined || availableBytes === undefined || !Number.isFinite(freeBytes + availableBytes))
		throw new ShimError("guest.protocol", "the guest agent's metrics do not say how much memory is free and available");
	return { freeBytes, availableBytes };
}
