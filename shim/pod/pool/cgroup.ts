/** The control group of one VM that waits: it has a bound, and all that wait have little weight together. */

import { POOL_CGROUP } from "../../base/names.ts";
import { HostCgroup } from "../../host/cgroups.ts";

const BYTES_PER_MIB = 1024 * 1024;
/** What a VMM may take beside its guest's memory. */
const VMM_MIB = 512;
/** Half of what others have: who starts goes first (cgroup-v2, cpu.weight; version 1 counts in 1024ths). */
const CPU_WEIGHT = "50";
const CPU_SHARES = "512";

/** The group of a VM of the pool. */
export class PoolCgroup extends HostCgroup {
	readonly #memoryMib: number;

	/** @param name the VM's @param memoryMib its guest's memory */
	constructor(name: string, memoryMib: number) {
		super(`${POOL_CGROUP}/${name}`);
		this.#memoryMib = memoryMib;
	}

	override entered(): void {
		const bytes = String((this.#memoryMib + VMM_MIB) * BYTES_PER_MIB);
		if (!this.set("memory.max", bytes)) this.set("memory.limit_in_bytes", bytes);
		const all = new HostCgroup(POOL_CGROUP);
		if (!all.set("cpu.weight", CPU_WEIGHT)) all.set("cpu.shares", CPU_SHARES);
	}
}
