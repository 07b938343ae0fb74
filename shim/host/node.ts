/** The node itself: what it has to give. */

import { availableParallelism, totalmem } from "node:os";

import { MAX_GUEST_VCPUS } from "../base/names.ts";

const BYTES_PER_MIB = 1024 * 1024;

/** Processors that this process may use, as far as a guest has room for them, and memory in MiB. */
export function nodeSize(): { readonly vcpus: number; readonly memoryMib: number } {
	return { vcpus: Math.min(availableParallelism(), MAX_GUEST_VCPUS), memoryMib: Math.floor(totalmem() / BYTES_PER_MIB) };
}
