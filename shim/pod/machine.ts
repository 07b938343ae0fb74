/** A running VM with its agent: what a pod has once its boot is over. */

import type { AgentClient, AgentDetails } from "../agent/client.ts";
import { explain, ShimError } from "../base/errors.ts";
import type { Vmm, VmmExit } from "../vmm/launcher.ts";

/** A VM that runs, and the connection to its agent. */
export interface Machine {
	readonly vmm: Vmm;
	readonly agent: AgentClient;
	readonly details: AgentDetails;
	/** The VM's hybrid vsock socket. */
	readonly vsock: string;
	/** Settles, with the reason, when the VM or its agent is gone; never rejects. */
	readonly died: Promise<ShimError>;
}

/** What becomes of a VM whose process has ended. */
export function vmmDeath(podId: string, exit: VmmExit): ShimError {
	return new ShimError("pod.lost", `the VM of pod ${podId} has ended: ${exit.text}`);
}

/**
 * Watches a VM: it is dead when its process ends, when it says that its guest panicked, reboots or shut down, or when the agent's
 * connection breaks. In the latter cases the process is killed, so that nothing is left half alive.
 */
export function watchMachine(podId: string, vmm: Vmm, agent: AgentClient, guestEnded: Promise<string>): Promise<ShimError> {
	const ended = vmm.exited.then((exit) => vmmDeath(podId, exit));
	const guest = guestEnded.then((what) => new ShimError("pod.lost", `the guest of pod ${podId} has ended: ${what}`));
	const lost = agent.closed.then((why) => new ShimError("pod.lost", `the guest agent of pod ${podId} is gone: ${explain(why)}`));
	return Promise.race([ended, guest, lost]).then(async (death) => {
		// A VM that ends closes the agent's connection first: its exit says more, so it gets a moment to arrive by killing what is left.
		const exit = await vmm.kill().catch(() => undefined);
		agent.close();
		return exit === undefined || death.message.includes(exit.text) ? death : new ShimError("pod.lost", `${death.message}: ${exit.text}`);
	});
}
