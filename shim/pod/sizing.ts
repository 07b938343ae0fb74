/** How large a pod's VM is: what its containers may use by their limits, and what the configuration gives to every pod. Pure. */

import type { OciResources, PodSpec } from "../agent/oci-spec.ts";
import { ShimError } from "../base/errors.ts";
import { hugePageBytes } from "./huge-pages.ts";

/** A VM's size, or a node's. */
export interface MachineSize {
	readonly vcpus: number;
	readonly memoryMib: number;
}

const BYTES_PER_MIB = 1024 * 1024;
/** Names: the sum of the containers' limits, which containerd writes on the sandbox (containerd, CRI annotations). */
export const SANDBOX_LIMIT_ANNOTATIONS = {
	cpuPeriod: "io.kubernetes.cri.sandbox-cpu-period",
	cpuQuota: "io.kubernetes.cri.sandbox-cpu-quota",
	memory: "io.kubernetes.cri.sandbox-memory",
} as const;

/** What a container may use at most. */
export interface Limits {
	/** Microseconds of each period; 0 for no limit. */
	readonly cpuQuotaUs: number;
	readonly cpuPeriodUs: number;
	/** 0 for no limit. */
	readonly memoryBytes: number;
	/** Huge pages, which no limit of memory counts. */
	readonly hugeBytes: number;
}

/** Memory is added to a running VM in steps of this size (Cloud Hypervisor; a memory block of Linux on x86-64). */
const MEMORY_STEP_MIB = 128;

/**
 * The limits of a container, from its specification or from an update; what an update leaves out stays as it was.
 * @throws ShimError `spec.unsupported` for huge pages that no VM has
 */
export function limitsOf(resources: OciResources, before: Limits = NO_LIMITS): Limits {
	const { cpu, memory } = resources;
	const chosen = (value: number | null | undefined, old: number): number => (value == null || value === 0 ? old : Math.max(0, value));
	return {
		cpuQuotaUs: chosen(cpu?.quota, before.cpuQuotaUs),
		cpuPeriodUs: chosen(cpu?.period, before.cpuPeriodUs),
		memoryBytes: chosen(memory?.limit, before.memoryBytes),
		hugeBytes: chosen(hugePageBytes(resources), before.hugeBytes),
	};
}

const NO_LIMITS: Limits = { cpuQuotaUs: 0, cpuPeriodUs: 0, memoryBytes: 0, hugeBytes: 0 };

function podLimits(spec: PodSpec): Limits {
	const annotation = (name: string): number => Math.max(0, Number(spec.annotations?.[name] ?? "0") || 0);
	const sandbox = Object.values(SANDBOX_LIMIT_ANNOTATIONS).some((name) => spec.annotations?.[name] !== undefined);
	if (sandbox) {
		return {
			cpuQuotaUs: annotation(SANDBOX_LIMIT_ANNOTATIONS.cpuQuota),
			cpuPeriodUs: annotation(SANDBOX_LIMIT_ANNOTATIONS.cpuPeriod),
			memoryBytes: annotation(SANDBOX_LIMIT_ANNOTATIONS.memory),
			// containerd does not tell a pod's: the VM grows when a container comes that has some.
			hugeBytes: 0,
		};
	}
	return limitsOf(spec.linux?.resources ?? {});
}

const cpusOf = ({ cpuQuotaUs, cpuPeriodUs }: Limits): number => (cpuQuotaUs > 0 && cpuPeriodUs > 0 ? cpuQuotaUs / cpuPeriodUs : 0);
const mibOf = ({ memoryBytes, hugeBytes }: Limits): number => Math.ceil((memoryBytes + hugeBytes) / BYTES_PER_MIB);

/**
 * The size of a pod's VM: memory is the base and the containers' limits on top; processors are the limit, rounded up, at least the base and
 * at most the node's.
 * @param base what every pod gets
 * @param node what the node has
 * @throws ShimError `pod.too-large` for more memory than the node has
 */
export function sizeOf(podId: string, spec: PodSpec, base: MachineSize, node: MachineSize): MachineSize {
	const limits = podLimits(spec);
	const wanted = Math.ceil(cpusOf(limits));
	const limitMib = mibOf(limits);
	const memoryMib = base.memoryMib + limitMib;
	if (limitMib > node.memoryMib) {
		throw new ShimError(
			"pod.too-large",
			`pod ${podId} asks for ${limitMib} MiB of memory and huge pages: this node has ${node.memoryMib} MiB`,
		);
	}
	return { vcpus: Math.max(base.vcpus, Math.min(wanted, node.vcpus)), memoryMib };
}

/**
 * What a VM may grow to.
 * @param allowed processors in all, and memory on top (MiB); 0 for no growth
 */
export function mostOf(boot: MachineSize, allowed: MachineSize): MachineSize {
	const steps = Math.ceil(allowed.memoryMib / MEMORY_STEP_MIB);
	return { vcpus: Math.max(boot.vcpus, allowed.vcpus), memoryMib: boot.memoryMib + steps * MEMORY_STEP_MIB };
}

/**
 * The size of a running VM when the limits of its containers are these. It never shrinks, and grows as far as it may.
 * @param now what it has
 * @param base what every pod gets
 * @param most what it may grow to
 */
export function grown(now: MachineSize, base: MachineSize, most: MachineSize, limits: readonly Limits[]): MachineSize {
	const cpus = Math.ceil(limits.reduce((sum, one) => sum + cpusOf(one), 0));
	const wantedMib = base.memoryMib + limits.reduce((sum, one) => sum + mibOf(one), 0);
	const steps = Math.ceil(Math.max(0, Math.min(wantedMib, most.memoryMib) - now.memoryMib) / MEMORY_STEP_MIB);
	return { vcpus: Math.max(now.vcpus, Math.min(cpus, most.vcpus)), memoryMib: now.memoryMib + steps * MEMORY_STEP_MIB };
}

/**
 * Refuses limits that a confidential pod's VM would have to grow for: processors and memory are measured, or encrypted, from its start on.
 * @param before the container's limits as they are
 * @param changed as they shall be
 * @throws ShimError `confidential.size`
 */
export function checkFixed(containerId: string, before: Limits, changed: Limits, size: MachineSize): void {
	const cpus = cpusOf(changed);
	const moreCpus = cpus > cpusOf(before) && cpus > size.vcpus;
	const moreMemory = mibOf(changed) > mibOf(before) && mibOf(changed) > size.memoryMib;
	if (!moreCpus && !moreMemory) return;
	const what = moreMemory ? `${mibOf(changed)} MiB of memory and huge pages` : `${cpus} processors`;
	throw new ShimError(
		"confidential.size",
		`container ${containerId} is to have ${what}: its pod is confidential, and its VM keeps the ${size.vcpus} processors and ${size.memoryMib} MiB that it was started with`,
	);
}

/**
 * Refuses a limit that a VM can't hold.
 * @throws ShimError `pod.too-large`
 */
export function checkLimit(containerId: string, limits: Limits, size: MachineSize): void {
	if (mibOf(limits) <= size.memoryMib) return;
	throw new ShimError(
		"pod.too-large",
		`container ${containerId} is to have ${mibOf(limits)} MiB of memory and huge pages: its VM has ${size.memoryMib} MiB and may not grow further`,
		{ remedy: "raise guest.hotplug_memory_mib for new pods, or make this pod anew with the larger limit" },
	);
}
