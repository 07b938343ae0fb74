/** The disk of a container in a running VM: plugged in when it is made, pulled when it goes. */

import { ShimError } from "../base/errors.ts";
import type { Scope } from "../base/scope.ts";
import type { Config } from "../config/schema.ts";
import { slotOfBdf } from "../vmm/plan.ts";
import type { Machine } from "./machine.ts";
import type { PodState } from "./pod-state.ts";

/** The disk of a container's root file system; the path is on the host. */
export interface ContainerDisk {
	readonly id: string;
	readonly path: string;
}

/** What plugging needs of the pod. */
interface PluggingPod {
	readonly config: Config;
	readonly state: PodState;
	/** @throws ShimError when there is no running VM */
	machine(): Machine;
}

/**
 * Plugs a disk into a running VM; `scope` owns it from then on.
 * @returns its PCI slot, two hexadecimal digits
 * @throws ShimError `vmm.api` also when the guest could not find it where the hypervisor put it; `pod.lost`
 */
export async function plugDisk(pod: PluggingPod, { id, path }: ContainerDisk, scope: Scope): Promise<string> {
	const { client } = pod.machine().vmm;
	const device = await client.addDisk({ id, path, readonly: true }, { timeoutMs: pod.config.timeouts.vmm_call_ms });
	scope.defer(`disk ${id}`, () => pullDisk(pod, id));
	if (device === undefined) throw new ShimError("vmm.api", `the hypervisor does not say where disk ${id} is`);
	const slot = slotOfBdf(device.bdf);
	if (slot === undefined)
		throw new ShimError("vmm.api", `the hypervisor put disk ${id} at ${device.bdf}, where the guest agent can't find it`);
	return slot;
}

/** Pulls a disk out of the VM, if that runs. */
export async function pullDisk(pod: PluggingPod, id: string): Promise<void> {
	if (pod.state.kind !== "running") return;
	await pod.state.machine.vmm.client.removeDevice(id, { timeoutMs: pod.config.timeouts.vmm_call_ms });
}
