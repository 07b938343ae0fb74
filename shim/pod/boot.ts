/** The boot of a pod's VM: named steps over one scope. Whatever fails, closing the scope leaves nothing behind. */

import { constants } from "node:fs";
import { access, readFile } from "node:fs/promises";

import { AgentClient } from "../agent/client.ts";
import type { BootTimes } from "../agent/client.ts";
import { messageOf, ShimError } from "../base/errors.ts";
import { deferred, withDeadline } from "../base/deadline.ts";
import type { Log } from "../base/log.ts";
import { AGENT_PORT } from "../base/names.ts";
import type { Scope } from "../base/scope.ts";
import type { Config } from "../config/schema.ts";
import type { HostCgroup } from "../host/cgroups.ts";
import { SNP_PLACES } from "../host/snp.ts";
import type { SnpPlaces } from "../host/snp.ts";
import type { VmConfig } from "../vmm/config-types.ts";
import { launchVmm } from "../vmm/launcher.ts";
import type { Vmm, VmmEvent } from "../vmm/launcher.ts";
import { diskAddress, planVm } from "../vmm/plan.ts";
import { dialGuest } from "../vmm/vsock.ts";
import { TtrpcClient } from "../wire/client.ts";
import { agentHooks } from "./denials.ts";
import { DeviceRemovals } from "./device-removals.ts";
import { INITDATA_DISK } from "./initdata-disk.ts";
import { requireReadBack, requireSnp } from "./launch.ts";
import { vmmEnd, watchMachine } from "./machine.ts";
import type { Machine } from "./machine.ts";
import type { PodPlan } from "./plan.ts";
import type { PodNetwork } from "./pod-network.ts";
import type { Timeline } from "./timeline.ts";

/** A disk that the VM has from its start. */
export interface BootDisk {
	readonly id: string;
	readonly path: string;
}

/** What a boot needs. */
export interface BootContext {
	readonly podId: string;
	readonly folder: string;
	readonly plan: PodPlan;
	readonly config: Config;
	readonly timeline: Timeline;
	readonly scope: Scope;
	readonly signal: AbortSignal;
	readonly log: Log;
	/** Called as soon as the VMM's process exists, so that the journal knows it. */
	readonly onVmm: (vmm: Vmm) => void;
	/** The group that the VM's processes belong to from their start on. */
	readonly cgroup: HostCgroup | undefined;
	/** The first container's disk, made while the VMM starts; undefined for a pod whose first container runs nothing. */
	readonly disk: Promise<BootDisk> | undefined;
	/** A confidential pod's initdata. */
	readonly initdata: BootDisk | undefined;
	/** Where this machine says whether it can start SEV-SNP guests; Linux's own places unless given. */
	readonly snpPlaces?: SnpPlaces;
	/** The pod's writable disk, made while the VMM starts; undefined for a pod that writes to memory. */
	readonly scratch: Promise<BootDisk | undefined>;
	/** The pod's network, prepared while the VMM starts; undefined: loopback alone. */
	readonly network: Promise<PodNetwork | undefined>;
	/** How readily the kernel ends the VM when memory runs out (proc(5), oom_score_adj); 0 unless given. */
	readonly oomScore?: number;
}

/** A booted machine, and the PCI addresses of its first disk and of its writable one (`0000:00:1f.0`; empty without the disk). */
export interface Booted {
	readonly machine: Machine;
	readonly diskAddress: string;
	readonly scratchAddress: string;
	/** Settles when the VMM says that the guest has ended. */
	readonly guestEnded: Promise<string>;
}

/** The VMM's name of the pod's writable disk. */
export const SCRATCH_DISK = "scratch";

const KVM_DEVICE = "/dev/kvm";
/** Failures of the hypervisor that a missing KVM explains. */
const VMM_REASONS: ReadonlySet<string> = new Set(["vmm.launch", "vmm.api", "vmm.exited"]);

/** Failures that a dying VM causes before its end is noticed. */
const EARLY_SIGNS: ReadonlySet<string> = new Set(["guest.unreachable", "vmm.exited"]);

/** How long a VM's end may take to be noticed after its sockets have failed. */
const DEATH_NOTICE_MS = 1_000;
/** How much of a dead guest's console goes into the message. */
const CONSOLE_LINES = 8;

/** Events of the VMM after which the guest is not the one that was started (Cloud Hypervisor v53). */
const GUEST_END_EVENTS = new Set(["vm:rebooting", "vm:shutdown", "guest:panic"]);

/** Listens to a VMM's events for the end of its guest, and of its devices. */
export class GuestEnd {
	readonly #ended = deferred<string>();
	readonly ended: Promise<string> = this.#ended.promise;
	/** Those of the VM's devices that leave while it runs. */
	readonly removals = new DeviceRemovals();

	/** Takes one event of the VMM. */
	accept(event: VmmEvent): void {
		this.removals.accept(event);
		const name = `${event.source}:${event.event}`;
		if (GUEST_END_EVENTS.has(name)) this.#ended.resolve(`the hypervisor reports ${event.source} ${event.event}`);
	}
}

/**
 * Boots the VM and greets its agent.
 * @throws ShimError `vmm.boot-timeout` when it takes longer than timeouts.boot_ms, `vmm.exited` when the VMM dies meanwhile, or what a step throws
 */
export async function bootMachine(context: BootContext): Promise<Booted> {
	const what = `booting the VM of pod ${context.podId}`;
	const timeoutMs = context.config.timeouts.boot_ms;
	try {
		return await withDeadline({ what, timeoutMs, signal: context.signal, reason: "vmm.boot-timeout" }, (signal) =>
			bootSteps(context, signal),
		);
	} catch (error) {
		if (!(error instanceof ShimError)) throw error;
		if (error.reason !== "vmm.boot-timeout") throw await withKvmRemedy(error, KVM_DEVICE);
		const unfinished = context.timeline.spans.filter((span) => span.durationMs === undefined || span.failed).map((span) => span.step);
		throw new ShimError("vmm.boot-timeout", `${error.message}; not finished: ${unfinished.join(", ")}${await lastWords(context)}`);
	}
}

/**
 * A hypervisor that failed where there is no KVM most likely failed for want of it: its remedy then says how to get it.
 * @param device the path of KVM's device
 */
export async function withKvmRemedy(error: ShimError, device: string): Promise<ShimError> {
	if (!VMM_REASONS.has(error.reason)) return error;
	try {
		await access(device, constants.R_OK | constants.W_OK);
		return error;
	} catch (missing) {
		const remedy = `${device} can't be opened (${messageOf(missing)}): load kvm_amd, turn on SVM in the firmware, or nested virtualisation on the host of this machine`;
		return new ShimError(error.reason, error.message, { remedy, cause: error.cause });
	}
}

/** The names of releases in a pod's scope. */
export const VM_RELEASE = "VM";
export const CGROUP_RELEASE = "control group";
export const AGENT_RELEASE = "agent connection";

/**
 * Launches the VMM: its process is the scope's from the first moment on, known to the journal, and in its control group before it has any memory.
 * @returns the VMM, once the journal knows of it
 */
export function launchOwned(context: Omit<BootContext, "disk" | "network" | "scratch" | "initdata">, guestEnd: GuestEnd): Promise<Vmm> {
	const { config, folder, plan, scope, timeline, cgroup, signal } = context;
	const launching = timeline.step("vmm-launch", () =>
		launchVmm({
			hypervisorPath: plan.hypervisorPath,
			folder,
			logLevel: config.hypervisor.log_level,
			seccomp: config.hypervisor.seccomp ? "true" : "false",
			onEvent: (event) => guestEnd.accept(event),
			cgroup,
			// containerd protects itself and its children from the kernel's out-of-memory killer; a pod's memory must not be.
			oomScore: context.oomScore ?? 0,
			signal,
		}),
	);
	if (cgroup !== undefined)
		scope.defer(CGROUP_RELEASE, async () => {
			// Nothing must be on its way into what is removed.
			await launching.catch(() => undefined);
			await cgroup.remove();
		});
	scope.defer(VM_RELEASE, async () => {
		// One that is on its way when the scope closes would be nobody's.
		const vmm = await launching.catch(() => undefined);
		await vmm?.kill();
	});
	const launched = launching.then((vmm) => {
		// A later start of the pod may have a journal by then.
		if (!scope.closed) context.onVmm(vmm);
		return vmm;
	});
	launched.catch(() => undefined);
	return launched;
}

async function bootSteps(context: BootContext, signal: AbortSignal): Promise<Booted> {
	const guestEnd = new GuestEnd();
	const launched = launchOwned({ ...context, signal }, guestEnd);
	const [vmm, disk, scratch] = await Promise.all([launched, context.disk, context.scratch]);
	const died = Promise.race([vmmDeath(context, vmm), guestEnd.ended.then((how) => guestDeath(context, how))]);
	const failed = died.then((death) => Promise.reject(death));
	failed.catch(() => undefined);
	try {
		return await Promise.race([failed, startGuest(context, vmm, { disk, scratch, initdata: context.initdata }, guestEnd, signal)]);
	} catch (error) {
		throw await rootCause(error, died);
	}
}

/** When the VM dies, its sockets fail first: its own end says more, and is known a moment later. */
async function rootCause(error: unknown, died: Promise<ShimError>): Promise<unknown> {
	if (!(error instanceof ShimError) || !EARLY_SIGNS.has(error.reason)) return error;
	return withDeadline({ what: "the VM's end", timeoutMs: DEATH_NOTICE_MS }, () => died).catch(() => error);
}

/** A hypervisor that ended before the guest's agent answered. */
async function vmmDeath(context: BootContext, vmm: Vmm): Promise<ShimError> {
	const what = `the hypervisor ${context.plan.hypervisorPath} of pod ${context.podId} ${await vmmEnd(vmm)}`;
	return new ShimError("vmm.exited", what, vmm.remedyFor(await vmm.exited));
}

/** A guest that ended before its agent answered; with a console its last lines tell why. */
async function guestDeath(context: BootContext, how: string): Promise<ShimError> {
	const words = await lastWords(context);
	return new ShimError("vmm.exited", `the guest of pod ${context.podId} ended before its agent answered: ${how}${words}`, {
		remedy:
			words === ""
				? "check guest.kernel and guest.image; debug.console = true shows the guest's last words here"
				: "check guest.kernel and guest.image",
	});
}

/** What the guest's console said last, when there is one: the kernel's panic, or the last few lines. */
async function lastWords(context: BootContext): Promise<string> {
	const { consoleFile } = context.plan;
	const text = consoleFile === undefined ? "" : await readFile(consoleFile, "latin1").catch(() => "");
	const lines = text.trimEnd().split(/\r?\n/u);
	const told = lines.findLast((line) => line.includes("Kernel panic")) ?? lines.slice(-CONSOLE_LINES).join(" | ");
	return told === "" ? "" : `; its console says: ${told}`;
}

async function startGuest(context: BootContext, vmm: Vmm, disks: Disks, guestEnd: GuestEnd, signal: AbortSignal): Promise<Booted> {
	const { config, plan, timeline, podId } = context;
	const call = { signal, timeoutMs: config.timeouts.vmm_call_ms };
	const asked = vmConfig(plan, disks);
	const snp = plan.confidential?.mode === "snp";
	if (snp) await timeline.step("snp-check", () => requireSnp(vmm, plan.hypervisorPath, context.snpPlaces ?? SNP_PLACES, call));
	await timeline.step("vm-create", () => vmm.client.create(asked, call));
	if (snp) await timeline.step("snp-read-back", () => requireReadBack(vmm, asked, call));
	const network = await context.network;
	if (network !== undefined) await timeline.step("add-net", () => network.plugCold(vmm.client, { signal }));
	await timeline.step("vm-boot", () => vmm.client.boot(call));
	// The places of devices are known as soon as the VM runs; the guest boots meanwhile.
	const { disk, scratch } = disks;
	const none = disk === undefined && scratch === undefined;
	const places = none ? Promise.resolve(["", ""] as const) : timeline.step("disk-slot", () => findDisks(vmm, [disk, scratch], call));
	places.catch(() => undefined);
	const { agent, details } = await timeline.step("agent-connect", async () => {
		const client = await connectAgent({ ...context, signal }, { starting: true });
		const told = await client.details({ signal });
		noteGuest(timeline, told.bootTimes);
		return { agent: client, details: told.details };
	});
	const died = watchMachine(podId, vmm, agent, guestEnd.ended);
	const [first, second] = await places;
	const machine = { vmm, agent, details, vsock: plan.vsock, removals: guestEnd.removals, died };
	return { machine, diskAddress: first, scratchAddress: second, guestEnded: guestEnd.ended };
}

/** Connects to the guest's agent; the connection is the scope's. @param starting the guest boots: its agent may not listen yet */
export async function connectAgent(
	{
		podId,
		plan,
		config,
		folder,
		log,
		scope,
		signal,
	}: Pick<BootContext, "podId" | "plan" | "config" | "folder" | "log" | "scope" | "signal">,
	{ starting }: { readonly starting: boolean },
): Promise<AgentClient> {
	const { agent_call_ms, boot_ms } = config.timeouts;
	const { socket } = await dialGuest(plan.vsock, AGENT_PORT, { signal, timeoutMs: boot_ms, starting });
	const connection = new TtrpcClient(socket, { name: `the guest agent of pod ${podId}`, log });
	const client = new AgentClient(connection, agent_call_ms, agentHooks(folder, config, log));
	scope.defer(AGENT_RELEASE, () => client.close());
	return client;
}

/** Where the guest's own time went. What it says is shown, and decides nothing. */
function noteGuest(timeline: Timeline, times: BootTimes | undefined): void {
	if (times === undefined) return;
	const { beganAgoMs, initAgoMs, servingAgoMs } = times;
	timeline.past("guest-kernel", initAgoMs, Math.max(0, beganAgoMs - initAgoMs));
	timeline.past("guest-agent", servingAgoMs, Math.max(0, initAgoMs - servingAgoMs));
}

type Pair<T> = readonly [T, T];

async function findDisks(
	vmm: Vmm,
	[first, second]: Pair<BootDisk | undefined>,
	call: { signal: AbortSignal; timeoutMs: number },
): Promise<Pair<string>> {
	const info = await vmm.client.info(call);
	const addressOf = (disk: BootDisk | undefined): string => {
		if (disk === undefined) return "";
		const found = diskAddress(info, disk.id);
		if (found === undefined) throw new ShimError("vmm.api", `the hypervisor does not list disk ${disk.id} among the VM's devices`);
		return found;
	};
	return [addressOf(first), addressOf(second)];
}

/** The disks that the VM has from its start. */
export interface Disks {
	readonly disk: BootDisk | undefined;
	readonly scratch: BootDisk | undefined;
	readonly initdata: BootDisk | undefined;
}

/** What the VMM is asked for. */
export function vmConfig(plan: PodPlan, { disk, scratch, initdata }: Disks): VmConfig {
	const { confidential } = plan;
	const disks = [
		disk === undefined ? [] : [{ ...disk, readonly: true }],
		scratch === undefined ? [] : [{ ...scratch, readonly: false }],
		initdata === undefined ? [] : [{ ...initdata, readonly: true, serial: INITDATA_DISK }],
	];
	return planVm({
		vcpus: plan.vcpus,
		maxVcpus: plan.most.vcpus,
		memoryMiB: plan.memoryMib,
		sharedMemory: plan.sharedMemory,
		hotplugMemoryMiB: plan.most.memoryMib - plan.memoryMib,
		kernelPath: plan.kernel,
		initramfsPath: plan.image,
		cmdline: plan.kernelParameters,
		disks: disks.flat(),
		snp: confidential?.mode === "snp" ? { igvmPath: confidential.igvm, hostData: confidential.hostData } : undefined,
		balloon: plan.balloon ? { deflateOnOom: true, freePageReporting: true } : undefined,
		vsock: { cid: plan.vsockCid, socketPath: plan.vsock },
		serialFile: plan.consoleFile,
		pciSegments: plan.pciSegments,
		landlockRules: plan.landlockRules,
	});
}
