/** A VM of the pool, which ends or is handed over to a pod. */

import { basename, join } from "node:path";

import type { AgentDetails, AgentHooks } from "../../agent/client.ts";
import type { Log } from "../../base/log.ts";
import type { Scope } from "../../base/scope.ts";
import { HostCgroup } from "../../host/cgroups.ts";
import { setOomScore } from "../../host/processes.ts";
import type { Vmm } from "../../vmm/launcher.ts";
import { leaveAgent, watchMachine } from "../machine.ts";
import type { Machine } from "../machine.ts";
import type { MachineSize } from "../sizing.ts";
import { undo } from "../undo.ts";
import type { WarmVm } from "./pool.ts";
import { dropVmRecord } from "./record.ts";
import type { VmRecord } from "./record.ts";

/** Where VMs of the pool live. */
export interface PoolPlace {
	readonly stateDir: string;
	readonly log: Log;
}

/** The parts of a VM that is ready. */
export interface PoolVmParts {
	readonly record: VmRecord & { readonly ready: NonNullable<VmRecord["ready"]> };
	/** What is in here ends the VM. */
	readonly scope: Scope;
	readonly machine: Machine;
	/** Settles when the VMM says that the guest has ended. */
	readonly guestEnded: Promise<string>;
	readonly log: Log;
}

/** The hybrid vsock socket of the VM in a folder. */
export const vsockOf = (folder: string): string => join(folder, "vsock.sock");

/** What stands for a pod in messages about a VM that has none. */
export const podIdOf = (name: string): string => `pool/${name}`;

/** One VM of the pool. */
export class PoolVm implements WarmVm {
	readonly name: string;
	readonly key: string;
	readonly size: MachineSize;
	readonly pid: number;
	readonly startTime: bigint;
	readonly readyAtMs: number;
	readonly died: Promise<unknown>;
	/** The group that its VMM is in. */
	readonly cgroup: HostCgroup;
	/** The PCI address of its writable disk; empty without one. */
	readonly scratchAddress: string;
	/** Owns it: what is in here ends the VM. */
	readonly scope: Scope;
	#moving: Promise<void> = Promise.resolve();
	readonly #machine: Machine;
	readonly #guestEnded: Promise<string>;
	readonly #log: Log;

	constructor({ record, scope, machine, guestEnded, log }: PoolVmParts) {
		this.name = basename(machine.vmm.folder);
		this.key = record.key;
		this.size = { vcpus: record.vcpus, memoryMib: record.memoryMib };
		this.pid = machine.vmm.pid;
		this.startTime = machine.vmm.startTime;
		this.readyAtMs = record.ready.atMs;
		this.died = machine.died;
		this.cgroup = new HostCgroup(record.cgroup);
		this.scratchAddress = record.ready.scratchAddress;
		this.scope = scope;
		this.#machine = machine;
		this.#guestEnded = guestEnded;
		this.#log = log;
	}

	/** Settles when none of its processes is on its way into a pod's group. */
	get moving(): Promise<void> {
		return this.#moving;
	}

	get vmm(): Vmm {
		return this.#machine.vmm;
	}

	get details(): AgentDetails {
		return this.#machine.details;
	}

	/** Its guest is not to be talked to any more; the VM goes on. */
	leaveAgent(): void {
		leaveAgent(this.#machine);
	}

	async end(): Promise<void> {
		await undo(this.scope, this.#log);
	}

	/**
	 * Gives a confidential guest its pod's policy, which can be done once.
	 * @param gzip the pod's initdata
	 * @throws ShimError `policy.denied` when the guest does not wait any more; anything else for a policy that can't be bound: it goes on waiting
	 */
	bind(gzip: Uint8Array): Promise<void> {
		return this.#machine.agent.bindPolicy(gzip);
	}

	/** Its folder has become a pod's. */
	movedTo(folder: string): void {
		this.vmm.moveTo(folder);
		dropVmRecord(folder);
	}

	/** The VM as a pod's, once its folder is the pod's. */
	machineOf(podId: string, agentCallMs: number, hooks: AgentHooks): Machine {
		const { vmm, agent, details, removals } = this.#machine;
		const own = agent.handOver(`the guest agent of pod ${podId}`, agentCallMs, hooks);
		return { vmm, agent: own, details, vsock: vsockOf(vmm.folder), removals, died: watchMachine(podId, vmm, own, this.#guestEnded) };
	}

	/** Puts its processes where a pod's belong: into this group, and no readier to be ended than others. Its group in the pool is empty afterwards. */
	moveInto(cgroup: HostCgroup): Promise<void> {
		this.#moving = cgroup.takeFrom(this.cgroup).then((moved) => {
			for (const pid of moved) setOomScore(pid, 0);
		});
		return this.#moving;
	}
}
