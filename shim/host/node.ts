/** The node itself: what it has to give. */

import { readFileSync } from "node:fs";
import { availableParallelism, totalmem } from "node:os";

import { MAX_GUEST_VCPUS } from "../base/names.ts";

const BYTES_PER_MIB = 1024 * 1024;

/** Processors that this process may use, as far as a guest has room for them, and memory in MiB. */
export function nodeSize(): { readonly vcpus: number; readonly memoryMib: number } {
	return { vcpus: Math.min(availableParallelism(), MAX_GUEST_VCPUS), memoryMib: Math.floor(totalmem() / BYTES_PER_MIB) };
}

/** What tells this boot of the node from all others (random(4)). */
export function bootId(): string {
	return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
}
