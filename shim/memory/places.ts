/** The places in which memory can run short: the node, the budget of all VMs, and the control groups with a limit above them. */

import type { Log } from "../base/log.ts";
import type { Watch } from "../host/memory.ts";
import { assess, AT_EASE } from "./decide.ts";
import type { Assessment, Place, PlaceState } from "./decide.ts";
import type { MemorySource, Sample } from "./source.ts";
import type { VmMemory } from "./vm-memory.ts";

const BYTES_PER_MIB = 1024 * 1024;
/** The indices of the node and of the budget among the places; groups come after them. */
export const NODE = 0;
export const BUDGET = 1;
/** One that has no limit, or is gone. */
const ENDLESS: Place = { totalBytes: Number.MAX_SAFE_INTEGER, availableBytes: Number.MAX_SAFE_INTEGER, stalledPercent: undefined };

interface Group {
	readonly path: string;
	readonly watch: Watch;
	users: number;
	state: PlaceState;
}

/** What is configured for all places. */
export interface PlacesOptions {
	readonly reserveBytes: number;
	/** 0: none. */
	readonly budgetBytes: number;
	readonly log: Log;
}

/** All places, and how they were found last. */
export class Places {
	readonly #options: PlacesOptions;
	readonly #source: MemorySource;
	readonly #groups = new Map<string, Group>();
	#node: PlaceState = AT_EASE;
	#budget: PlaceState = AT_EASE;

	constructor(options: PlacesOptions, source: MemorySource) {
		this.#options = options;
		this.#source = source;
	}

	/** The groups above a VM are watched from now on. @throws SystemError: EMFILE */
	join(vm: VmMemory): void {
		const { cgroup } = vm.options;
		for (const path of cgroup === undefined ? [] : this.#source.limitedGroups(cgroup)) {
			const group = this.#groups.get(path) ?? { path, watch: this.#source.watchGroup(path), users: 0, state: AT_EASE };
			group.users += 1;
			this.#groups.set(path, group);
			vm.groups.push(path);
		}
	}

	/** They need not be watched for this VM any more. */
	leave(vm: VmMemory): void {
		for (const path of vm.groups) {
			const group = this.#groups.get(path);
			if (group === undefined) continue;
			group.users -= 1;
			if (group.users > 0) continue;
			this.#source.unwatch(group.watch);
			this.#groups.delete(path);
		}
		vm.groups.length = 0;
	}

	/** The node, or what the VMs may have of it, is short. */
	get nodeIsShort(): boolean {
		return this.#node.short || this.#budget.short;
	}

	get anyIsShort(): boolean {
		return this.nodeIsShort || [...this.#groups.values()].some(({ state }) => state.short);
	}

	/** A place of this VM is short. */
	isShortFor(vm: VmMemory): boolean {
		return this.nodeIsShort || vm.groups.some((path) => this.#groups.get(path)?.state.short === true);
	}

	/**
	 * Looks at all of them; what begins and ends is logged.
	 * @param heldBytes what all VMs hold, those that wait included
	 * @returns the node, the budget and every group, and for a VM which of them it is in
	 */
	assess(sample: Sample, heldBytes: number, nowMs: number): { readonly found: Assessment[]; readonly of: (vm: VmMemory) => number[] } {
		const { reserveBytes, budgetBytes } = this.#options;
		const look = (name: string, place: Place, before: PlaceState): Assessment => {
			const found = assess(place, before, reserveBytes, nowMs);
			if (found.short !== before.short) this.#tell(name, place, found.short);
			return found;
		};
		const node = look("the node", sample.node, this.#node);
		this.#node = node;
		const own: Place =
			budgetBytes === 0 ? ENDLESS : { totalBytes: budgetBytes, availableBytes: budgetBytes - heldBytes, stalledPercent: undefined };
		const budget = look("the budget of all VMs (memory.budget_mib)", own, this.#budget);
		this.#budget = budget;
		const groups = [...this.#groups.values()];
		const rest = groups.map((group) => {
			const found = look(`the control group ${group.path}`, sample.group(group.watch) ?? ENDLESS, group.state);
			group.state = found;
			return found;
		});
		const indices = new Map(groups.map(({ path }, index) => [path, BUDGET + 1 + index]));
		const of = (vm: VmMemory): number[] => [NODE, BUDGET, ...vm.groups.flatMap((path) => indices.get(path) ?? [])];
		return { found: [node, budget, ...rest], of };
	}

	#tell(name: string, { availableBytes, totalBytes, stalledPercent }: Place, short: boolean): void {
		const { log } = this.#options;
		const mib = (bytes: number): number => Math.round(bytes / BYTES_PER_MIB);
		const fields = { availableMib: mib(availableBytes), totalMib: mib(totalBytes), stalledPercent };
		if (short) log.warn(`memory is short in ${name}: VMs that wait for pods go first, idle pods give back what they can spare`, fields);
		else log.info(`memory is no longer short in ${name}`, fields);
	}
}
