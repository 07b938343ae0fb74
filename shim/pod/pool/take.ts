/** A VM of the pool becomes a pod's: what a boot does for a pod, without the boot. */

import { randomBytes } from "node:crypto";

import { withDeadline } from "../../base/deadline.ts";
import { explain, ShimError } from "../../base/errors.ts";
import { planDisk } from "../../vmm/plan.ts";
import type { BootContext, BootDisk, Booted } from "../boot.ts";
import { agentHooks } from "../denials.ts";
import type { Machine } from "../machine.ts";
import type { PoolVm } from "./vm.ts";

const SEED_BYTES = 64;
/** A VM that has waited, and its hypervisor, answer within this, or a boot is quicker. */
const HEALTH_MS = 2_000;

/** What taking needs: the network and the disk are plugged in as they become ready. */
export type TakeContext = Pick<
	BootContext,
	"podId" | "folder" | "plan" | "config" | "timeline" | "signal" | "log" | "cgroup" | "disk" | "network"
>;

/** What comes of it. */
export interface TakenMachine extends Pick<Booted, "machine" | "diskAddress" | "scratchAddress"> {
	/** Settles when the VM's processes are in the pod's control group: the kernel takes its time, and the guest's first calls need not wait for it. */
	readonly moved: Promise<void>;
}

/**
 * Makes a VM of the pool the pod's. Its folder and its scope are the pod's already.
 * @param entered called before the first thing of the pod goes into the VM, which has answered by then
 * @throws ShimError `vmm.boot-timeout`, `pod.lost`, or what a step throws
 */
export async function takeMachine(context: TakeContext, vm: PoolVm, entered: () => void): Promise<TakenMachine> {
	const { podId, config } = context;
	const wait = { what: `taking a VM of the pool for pod ${podId}`, timeoutMs: config.timeouts.boot_ms, signal: context.signal };
	return withDeadline({ ...wait, reason: "vmm.boot-timeout" }, async (signal) => {
		const machine = vm.machineOf(podId, config.timeouts.agent_call_ms, agentHooks(context.folder, config, context.log));
		const lost = machine.died.then((death) => Promise.reject(death));
		lost.catch(() => undefined);
		const moved = context.timeline.step("pool-move", () => move(context, vm));
		moved.catch(() => undefined);
		let over = false;
		const enter = (): void => {
			// What the pod brings may come when another VM is on its way already: it is for that one.
			if (over || signal.aborted) throw new ShimError("pod.lost", `the VM of the pool that pod ${podId} was to have is given up`);
			entered();
		};
		try {
			const diskAddress = await Promise.race([lost, prepare(context, machine, enter, signal)]);
			return { machine, diskAddress, scratchAddress: vm.scratchAddress, moved };
		} catch (error) {
			over = true;
			// A group that is given back must not get processes any more.
			await moved.catch(() => undefined);
			throw error;
		}
	});
}

async function prepare(context: TakeContext, machine: Machine, entered: () => void, signal: AbortSignal): Promise<string> {
	const { timeline } = context;
	const answered = answers(machine, signal);
	const enter = async (): Promise<void> => {
		await answered;
		entered();
	};
	const taken = timeline.step("pool-take", () => Promise.all([answered, refresh(context, machine, signal)]));
	const [address] = await Promise.all([plugOwn(context, machine, signal, enter), taken]);
	return address;
}

/**
 * Plugs the pod's first disk and its network into a VM that runs, each as it becomes ready.
 * @param enter waited for before the first of them goes into the VM
 * @returns the disk's PCI address; empty without a disk
 */
export async function plugOwn(
	context: Pick<BootContext, "config" | "timeline" | "disk" | "network">,
	machine: Machine,
	signal: AbortSignal,
	enter: () => Promise<void> = () => Promise.resolve(),
): Promise<string> {
	const { timeline } = context;
	const plugged = async (): Promise<string> => {
		const disk = await context.disk;
		if (disk === undefined) return "";
		await enter();
		return timeline.step("add-disk", () => plugDisk(context, machine, disk, signal));
	};
	const joined = async (): Promise<void> => {
		const network = await context.network;
		if (network === undefined) return;
		await enter();
		await timeline.step("add-net", () => network.plugCold(machine.vmm.client, { signal }));
	};
	const [address] = await Promise.all([plugged(), joined()]);
	return address;
}

/** It may have hung while it waited. @throws ShimError when the guest or its hypervisor does not answer in a short time */
async function answers({ vmm, agent }: Machine, signal: AbortSignal): Promise<void> {
	const call = { signal, timeoutMs: HEALTH_MS };
	await Promise.all([agent.check(call), vmm.client.ping(call)]);
}

async function move({ cgroup }: TakeContext, vm: PoolVm): Promise<void> {
	if (cgroup !== undefined) await vm.moveInto(cgroup);
}

/**
 * A guest that has waited may have a clock that went its own way; new randomness costs nothing. Agents that take neither go on with what they have.
 * A confidential guest takes neither from its host.
 */
async function refresh({ log, plan }: TakeContext, { agent }: Machine, signal: AbortSignal): Promise<void> {
	if (plan.confidential !== undefined) return;
	await renew(agent, signal).catch((error: unknown) =>
		log.debug("the guest keeps its clock or its random seed", { reason: explain(error) }),
	);
}

/** Gives a guest the time, and randomness of the node. @throws ShimError when its agent does not take both */
export async function renew(agent: Machine["agent"], signal: AbortSignal): Promise<void> {
	await Promise.all([agent.setTime(Date.now(), { signal }), agent.reseed(randomBytes(SEED_BYTES), { signal })]);
}

async function plugDisk({ config }: Pick<BootContext, "config">, { vmm }: Machine, disk: BootDisk, signal: AbortSignal): Promise<string> {
	const call = { signal, timeoutMs: config.timeouts.vmm_call_ms };
	const device = await vmm.client.addDisk(planDisk({ ...disk, readonly: true }), call);
	if (device === undefined) throw new ShimError("vmm.api", `the hypervisor does not say where disk ${disk.id} is`);
	return device.bdf;
}
