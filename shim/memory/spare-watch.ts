/** How much memory VMs that wait for a pod hold, and how much of it comes back since they are being ended. */

import type { Watch } from "../host/memory.ts";
import type { Spare, SpareVm } from "./ports.ts";
import type { MemorySource, Sample } from "./source.ts";

/** The memory of one that has not ended by then is not counted on any more. */
const COMING_MS = 10_000;

interface Watched {
	readonly watch: Watch | undefined;
	endingSinceMs: number | undefined;
}

/** Watches the VMs of a `Spare`. Whoever makes it closes it. */
export class SpareWatch {
	readonly #source: MemorySource;
	readonly #watched = new Map<SpareVm, Watched>();

	constructor(source: MemorySource) {
		this.#source = source;
	}

	/** Watches those that are there now, and no others. @throws SystemError: EMFILE */
	follow(spare: Spare | undefined, nowMs: number): void {
		const ending = new Set(spare?.ending);
		const there = new Set([...(spare?.waiting ?? []), ...ending]);
		for (const vm of this.#watched.keys()) if (!there.has(vm)) this.#forget(vm);
		for (const vm of there) {
			const known = this.#watched.get(vm) ?? { watch: this.#source.watchProcess(vm.pid, vm.startTime), endingSinceMs: undefined };
			if (ending.has(vm)) known.endingSinceMs ??= nowMs;
			this.#watched.set(vm, known);
		}
	}

	#forget(vm: SpareVm): void {
		const watch = this.#watched.get(vm)?.watch;
		if (watch !== undefined) this.#source.unwatch(watch);
		this.#watched.delete(vm);
	}

	/** What all of them hold, with their hypervisors. */
	residentBytes(sample: Sample): number {
		return this.#sum(sample, () => true);
	}

	/** What those hold that will be gone soon. */
	comingBytes(sample: Sample, nowMs: number): number {
		return this.#sum(sample, ({ endingSinceMs }) => endingSinceMs !== undefined && nowMs - endingSinceMs < COMING_MS);
	}

	#sum(sample: Sample, counts: (vm: Watched) => boolean): number {
		const counted = [...this.#watched.values()].filter(counts);
		return counted.reduce((sum, { watch }) => sum + (watch === undefined ? 0 : (sample.process(watch)?.residentBytes ?? 0)), 0);
	}

	close(): void {
		for (const vm of [...this.#watched.keys()]) this.#forget(vm);
	}
}
