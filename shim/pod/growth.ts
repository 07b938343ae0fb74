/** A running VM grows when the limits of its containers are raised (in-place resize). It never shrinks: a guest can't be made to give back. */

import type { OciSpec } from "../agent/oci-spec.ts";
import { hugeVolumeBytes } from "./huge-pages.ts";
import { checkFixed, checkLimit, grown, limitsOf } from "./sizing.ts";
import type { Limits, MachineSize } from "./sizing.ts";
import { explain, ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Config } from "../config/schema.ts";
import type { VmMemory } from "../memory/vm-memory.ts";
import type { Machine } from "./machine.ts";
import type { Timeline } from "./timeline.ts";

const BYTES_PER_MIB = 1024 * 1024;

/** What a VM has, and what it may grow to. */
export interface VmSize {
	readonly now: MachineSize;
	readonly most: MachineSize;
}

/** What growing needs of the pod. */
export interface GrowingPod {
	readonly config: Config;
	readonly timeline: Timeline;
	readonly log: Log;
	machine(): Machine;
	save(): void;
}

/** Where a VM's size is kept. */
interface Sized {
	/** Undefined for a pod that an older snpd booted: it keeps its size. */
	size: VmSize | undefined;
	/** Everything that changes its memory goes through it. */
	readonly memory: VmMemory | undefined;
}

/**
 * Makes room for new limits of one container.
 * @param vm its size changes with it
 * @param limits the container's limits as they are, and as they shall be
 * @param all those of every container of the pod, the changed ones included
 * @throws ShimError `pod.too-large` for a limit that the VM can't hold, `confidential.size` for one that a confidential pod's can't
 */
export async function growVm(
	pod: GrowingPod,
	vm: Sized,
	containerId: string,
	{ before, changed }: { readonly before: Limits; readonly changed: Limits },
	all: readonly Limits[],
): Promise<void> {
	if (vm.size === undefined) return;
	const { now, most } = vm.size;
	if (pod.config.confidential.mode !== "off") return checkFixed(containerId, before, changed, now);
	const { vcpus, memory_mib: memoryMib } = pod.config.guest;
	const wanted = grown(now, { vcpus, memoryMib }, most, all);
	checkLimit(containerId, changed, wanted);
	if (wanted.vcpus === now.vcpus && wanted.memoryMib === now.memoryMib) return;
	const { agent } = pod.machine();
	const { memory } = vm;
	if (memory === undefined) throw new ShimError("internal", `container ${containerId}: its VM is being made`);
	await pod.timeline.step("vm-resize", async () => {
		await memory.grow({ vcpus: wanted.vcpus, ramBytes: wanted.memoryMib * BYTES_PER_MIB });
		vm.size = { now: wanted, most };
		pod.save();
	});
	// The limits hold at once; processors come up when the guest's kernel finds them. One that takes none goes on with those it has.
	agent
		.online(wanted.vcpus - now.vcpus)
		.catch((error: unknown) => pod.log.warn("the guest does not take what was plugged in", { reason: explain(error) }));
	pod.log.info("the VM has grown", { vcpus: wanted.vcpus, memoryMib: wanted.memoryMib });
}

/**
 * Makes room for the huge pages of a container that comes: what containerd tells of a pod's size has none in it.
 * @param others those that are there
 * @throws ShimError `pod.too-large`; `spec.unsupported` for pages that a VM has not
 */
export async function growForPages(
	pod: GrowingPod,
	vm: Sized,
	containerId: string,
	spec: OciSpec,
	others: Iterable<{ readonly limits: Limits }>,
): Promise<void> {
	const own = limitsOf(spec.linux?.resources ?? {});
	// containerd leaves limits of huge pages out unless it is told otherwise (disable_hugetlb_controller): the volume's size says it then.
	const limits = own.hugeBytes > 0 ? own : { ...own, hugeBytes: await hugeVolumeBytes(spec) };
	if (limits.hugeBytes === 0) return;
	const before = { ...limits, hugeBytes: 0 };
	await growVm(pod, vm, containerId, { before, changed: limits }, [limits, ...Array.from(others, (other) => other.limits)]);
}
