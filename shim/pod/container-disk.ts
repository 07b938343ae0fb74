/**
 * Disks of containers in a running VM. Containers of a pod whose images are the same file share a disk: it is plugged in for the first of them
 * and pulled with the last.
 */

import { deviceSource } from "../agent/storages.ts";
import { ShimError } from "../base/errors.ts";
import type { RootfsImage } from "../storage/images.ts";
import { isNoSlot, isUnknownDevice } from "../vmm/api-error.ts";
import { planDisk } from "../vmm/plan.ts";
import type { Container } from "./container.ts";
import type { MakingPod } from "./making.ts";

/** The disk of a container's root file system. */
export interface ContainerDisk {
	/** The VMM's name of it; that of another container of the pod when they share it. */
	readonly id: string;
	/** On the host. */
	readonly path: string;
	/** The file behind the path (see `fileIdentity`); empty for one of an older snpd, which is not shared. */
	readonly file: string;
	/** Its PCI address in the VM (`0000:00:1f.0`); null before it is plugged in, and once it may have been pulled. */
	readonly address: string | null;
}

/** Disks on the first PCI segment until others are used: the rest of its slots is for the VM's own devices and for interfaces that come later. */
const FIRST_SEGMENT_DISKS = 24;
const FIRST_SEGMENT = /^0000:00:/;

/** Chooses the disk of a container that is being made: one that the VM has already, or a new one. Its address tells which. */
export function chooseDisk(pod: MakingPod, { path, file }: Pick<RootfsImage, "path" | "file">): ContainerDisk {
	const shared = disksOf(pod).find((disk) => disk.file === file && disk.address !== null);
	return shared === undefined ? { id: `disk${pod.nextNumber()}`, path, file, address: null } : { ...shared, path };
}

/**
 * Plugs the disk of a container into the running VM, if it is not there; the container's is in the journal already.
 * @throws ShimError `pod.slots-full` when the VM has no place for it; `vmm.api`; `pod.lost`
 */
export async function plugDisk(pod: MakingPod, container: Container): Promise<void> {
	const { disk } = container;
	if (disk === null || disk.address !== null) return;
	const { vmm, details } = pod.machine();
	const call = { timeoutMs: pod.config.timeouts.vmm_call_ms };
	const segments = details.pci ? pod.pciSegments : 1;
	for (const segment of segmentsToTry(pod, segments)) {
		try {
			const device = await vmm.client.addDisk(planDisk({ id: disk.id, path: disk.path, readonly: true, segment }), call);
			if (device === undefined) throw new ShimError("vmm.api", `the hypervisor does not say where disk ${disk.id} is`);
			container.disk = { ...disk, address: device.bdf };
			return;
		} catch (error) {
			if (!(error instanceof ShimError && isNoSlot(error.cause))) throw error;
		}
	}
	const full = segments === 1 ? "its one PCI segment is full" : `its ${segments} PCI segments are full`;
	const text = `the VM of pod ${pod.podId} has no PCI slot for the disk of container ${container.id}: ${full} (disks of containers: ${disksOf(pod).length})`;
	const remedy = "this pod's guest agent finds disks on the first PCI segment only: use an image with our agent (guest.image)";
	throw new ShimError("pod.slots-full", text, details.pci ? {} : { remedy });
}

/** What the guest's agent is told of a container's disk; empty for a container without one. @throws ShimError `vmm.api` for a place that it can't find */
export function diskSource(pod: MakingPod, { disk }: Container): string {
	if (disk === null) return "";
	const source = deviceSource(disk.address ?? "", pod.machine().details.pci);
	if (source === undefined)
		throw new ShimError(
			"vmm.api",
			`the hypervisor put disk ${disk.id} at ${disk.address ?? "no place"}, where the guest agent can't find it`,
		);
	return source;
}

/** A container gives its disk up. With the last one that has it the disk is pulled out of the VM, if that runs. */
export async function releaseDisk(pod: MakingPod, container: Container): Promise<void> {
	const { disk } = container;
	if (disk === null || pod.state.kind !== "running") return;
	// From here on no other container may begin to share it, whatever becomes of this snpd.
	container.disk = { ...disk, address: null };
	pod.saveQuietly();
	const others = [...pod.containers.values()].filter((other) => other !== container);
	if (!others.some((other) => other.disk?.id === disk.id)) await pullDisk(pod, disk.id);
}

/** Pulls a disk out of a running VM; one that is not there is no error, and neither is a VM that ends meanwhile. */
export async function pullDisk(pod: MakingPod, id: string): Promise<void> {
	try {
		await pod.machine().vmm.client.removeDevice(id, { timeoutMs: pod.config.timeouts.vmm_call_ms });
	} catch (error) {
		if (!(error instanceof ShimError)) throw error;
		const gone = error.reason === "vmm.exited" || error.reason === "pod.lost";
		if (!gone && !isUnknownDevice(error.cause)) throw error;
	}
}

/** The disks of a pod's containers, each once. */
function disksOf(pod: MakingPod): ContainerDisk[] {
	const disks = new Map<string, ContainerDisk>();
	for (const { disk } of pod.containers.values()) {
		if (disk !== null && (disks.get(disk.id)?.address ?? null) === null) disks.set(disk.id, disk);
	}
	return [...disks.values()];
}

function segmentsToTry(pod: MakingPod, segments: number): number[] {
	const further = Array.from({ length: segments - 1 }, (_, index) => index + 1);
	const onFirst = disksOf(pod).filter(({ address }) => address !== null && FIRST_SEGMENT.test(address)).length;
	return onFirst < FIRST_SEGMENT_DISKS ? [0, ...further] : [...further, 0];
}
