/** A running VM with its agent: what a pod has once its boot is over. */

import type { AgentClient, AgentDetails } from "../agent/client.ts";
import { explain, ShimError } from "../base/errors.ts";
import type { Vmm } from "../vmm/launcher.ts";
import type { DeviceRemovals } from "./device-removals.ts";

/** A VM that runs, and the connection to its agent. */
export interface Machine {
	readonly vmm: Vmm;
	readonly agent: AgentClient;
	readonly details: AgentDetails;
	/** The VM's hybrid vsock socket. */
	readonly vsock: string;
	/** Tells when the guest has let a device go. */
	readonly removals: DeviceRemovals;
	/** Settles, with the reason, when the VM or its agent is gone; never rejects. */
	readonly died: Promise<ShimError>;
}

/** Agents whose connections were ended on purpose. */
const left = new WeakSet<AgentClient>();

/** Ends the connection to a VM's agent, and lets the VM go on. */
export function leaveAgent({ agent }: Machine): void {
	left.add(agent);
	agent.close();
}

/** How a VMM's process ended, with its own last words. */
export async function vmmEnd(vmm: Vmm): Promise<string> {
	const exit = await vmm.exited;
	const words = await vmm.logTail().catch(() => "");
	return words === "" ? `${exit.text}, with an empty log` : `${exit.text}; the end of its log: ${words}`;
}

/**
 * Watches a VM: it is dead when its process ends, when it says that its guest panicked, reboots or shut down, or when the agent's
 * connection breaks. In the latter cases the process is killed, so that nothing is left half alive.
 */
export function watchMachine(podId: string, vmm: Vmm, agent: AgentClient, guestEnded: Promise<string>): Promise<ShimError> {
	const ended = vmmEnd(vmm).then((how) => new ShimError("pod.lost", `the VM of pod ${podId} is gone: its process ${how}`));
	const guest = guestEnded.then((what) => new ShimError("pod.lost", `the guest of pod ${podId} has ended: ${what}`));
	const lost = agent.closed.then((why) => {
		if (left.has(agent)) return new Promise<never>(() => undefined);
		return new ShimError("pod.lost", `the guest agent of pod ${podId} is gone: ${explain(why)}`);
	});
	return Promise.race([ended, guest, lost]).then(async (death) => {
		await vmm.kill().catch(() => undefined);
		agent.close();
		return death;
	});
}
