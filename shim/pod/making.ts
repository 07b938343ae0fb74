/** How a container comes into its pod: its image and its disk, then the guest. */

import { resolve } from "node:path";

import type { OciSpec } from "../agent/oci-spec.ts";
import { ShimError } from "../base/errors.ts";
import type { Scope } from "../base/scope.ts";
import type { RootfsImage, RootfsImages } from "../storage/images.ts";
import { chooseDisk, diskSource, plugDisk, releaseDisk } from "./container-disk.ts";
import type { ContainerDisk } from "./container-disk.ts";
import type { ContainerHost } from "./container-host.ts";
import { Container } from "./container.ts";
import { isSandboxContainer } from "./plan.ts";
import type { PodState } from "./pod-state.ts";
import type { CreateRequest, PodIdentity } from "./ports.ts";
import { SandboxContainer } from "./sandbox-container.ts";

/** What making a container needs of its pod. */
export interface MakingPod extends ContainerHost {
	readonly podId: string;
	readonly state: PodState;
	/** PCI segments of the VM. */
	readonly pciSegments: number;
	/** Which containerd the pod belongs to. */
	readonly identity: PodIdentity;
	/** Whose images these are. */
	readonly owner: string;
	readonly images: RootfsImages;
	/** Those that are made, or nearly so. */
	readonly containers: Map<string, Container>;
	/** Writes the journal; a failure is logged. */
	saveQuietly(): void;
}

/** A container on its way. `disk` settles first; undefined for one that has none. */
export interface Making {
	readonly container: Promise<Container>;
	readonly disk: Promise<ContainerDisk> | undefined;
}

/** Begins to make a container's image; the container is registered when it is there. `scope` owns both. */
export function beginContainer(pod: MakingPod, request: CreateRequest, spec: OciSpec, scope: Scope, signal: AbortSignal): Making {
	// The one that stands for its pod needs no image.
	if (isSandboxContainer(spec) && pod.containers.size === 0) {
		const { id, bundle, stdio } = request;
		const made = new SandboxContainer({ id, bundle, spec, stdio, scope }, pod);
		pod.containers.set(id, made);
		return { container: Promise.resolve(made), disk: undefined };
	}
	const image = prepareImage(pod, request, spec, scope, signal);
	const disk = image.then((made) => chooseDisk(pod, made));
	const container = Promise.all([image, disk]).then(([made, found]) => {
		signal.throwIfAborted();
		return register(pod, { request, spec, image: made }, found, scope);
	});
	for (const promise of [disk, container]) promise.catch(() => undefined);
	return { container, disk };
}

/** What a container is made of. */
export interface Ingredients {
	readonly request: CreateRequest;
	readonly spec: OciSpec;
	readonly image: RootfsImage;
}

function register(pod: MakingPod, { request, spec, image }: Ingredients, disk: ContainerDisk, scope: Scope): Container {
	const { id, bundle, stdio } = request;
	const made = new Container({ id, bundle, spec, stdio, disk, layers: image.layers ?? null, scope }, pod);
	pod.containers.set(id, made);
	scope.defer(`disk of container ${id}`, () => releaseDisk(pod, made));
	return made;
}

/**
 * Has the guest make a container whose disk is in the VM. What the guest has of it before it is made whole needs no line in the journal: one that is not
 * complete there is cleared away with all that may be of it, and a pod that is still booting is.
 */
export async function finishContainer(pod: MakingPod, container: Container, request: CreateRequest, signal: AbortSignal): Promise<void> {
	container.scope.defer(`disks of the volumes of container ${container.id}`, () => releaseVolumes(pod, container.id));
	if (container.layers !== null && !pod.machine().details.verity) await flatten(pod, container, request, signal);
	container.scope.defer(`stdio of container ${container.id}`, () => container.releaseStdio());
	await container.prepare(diskSource(pod, container), signal);
	pod.save();
}

/** Makes a container in a pod whose VM runs; `scope` owns it, and its image. */
export async function makeContainer(pod: MakingPod, ingredients: Ingredients, scope: Scope, signal: AbortSignal): Promise<void> {
	const container = register(pod, ingredients, chooseDisk(pod, ingredients.image), scope);
	// The disk is in the journal before the VM has it.
	pod.save();
	await pod.timeline.step("add-disk", () => plugDisk(pod, container));
	await finishContainer(pod, container, ingredients.request, signal);
}

/** The agent of a VM that was booting when the disk was made turns out not to know layers: the container gets one file system instead. */
async function flatten(pod: MakingPod, container: Container, request: CreateRequest, signal: AbortSignal): Promise<void> {
	pod.images.knowGuest(pod.config.guest.image, false);
	if (isConfidential(pod))
		throw new ShimError(
			"spec.unsupported",
			`the guest agent of pod ${pod.podId} takes no layers, and a confidential pod takes nothing else`,
		);
	await releaseDisk(pod, container);
	const image = await prepareImage(pod, request, container.spec, container.scope, signal, false);
	container.disk = chooseDisk(pod, image);
	container.layers = null;
	pod.save();
	await pod.timeline.step("add-disk", () => plugDisk(pod, container));
}

/** Whether the guest's agent takes layers, as far as that is known: before its first answer it is taken for our own. */
function takesLayers(pod: MakingPod): boolean {
	if (!pod.config.storage.layers) return false;
	if (isConfidential(pod)) return true;
	return pod.state.kind === "running" ? pod.machine().details.verity : pod.images.guestTakesLayers(pod.config.guest.image);
}

/** Its policy vouches for root hashes of layers. */
const isConfidential = (pod: MakingPod): boolean => pod.config.confidential.mode !== "off";

/** Makes the image of a container's root file system, or finds it; `scope` owns it. @throws ShimError as `RootfsImages.prepare` does */
export function prepareImage(
	pod: MakingPod,
	request: CreateRequest,
	spec: OciSpec,
	scope: Scope,
	signal: AbortSignal,
	layers = takesLayers(pod),
): Promise<RootfsImage> {
	const { address, namespace } = pod.identity;
	const wanted = {
		mounts: request.rootfs,
		rootfsDir: resolve(request.bundle, spec.root.path),
		owner: pod.owner,
		name: request.id,
		container: layers ? { address, namespace, id: request.id } : undefined,
		layersOnly: isConfidential(pod),
		scope,
		signal,
	};
	return pod.timeline.step("rootfs-image", () => pod.images.prepare(wanted));
}

/** Gives back what a container has that an earlier snpd made. */
export async function releaseContainer(pod: MakingPod, container: Container): Promise<void> {
	await releaseDisk(pod, container);
	await pod.images.release(pod.owner, container.id);
}

/** Takes the disks and the shared folders out of the VM that no other container of the pod uses. */
export async function releaseVolumes(pod: MakingPod, containerId: string): Promise<void> {
	await pod.volumes.release(containerId, pod.state.kind === "running" ? pod.state.machine : undefined);
}
