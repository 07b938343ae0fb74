/** A container in the guest: what the agent is told to make it, or to change its limits. */

import { guestResources, resourcesLeftOut } from "../agent/guest-resources.ts";
import { guestSpec, sharesPidNamespace } from "../agent/guest-spec.ts";
import type { OciResources, OciSpec } from "../agent/oci-spec.ts";
import { hugePagesStorage, layerStorages, onScratch, rootfsStorage, upperStorage } from "../agent/storages.ts";
import type { StorageRequest, VerityLayer } from "../agent/storages.ts";
import { INITDATA_ANNOTATION } from "../policy/initdata.ts";
import type { ContainerHost } from "./container-host.ts";
import { streamPorts } from "./container-stdio.ts";
import type { ContainerStdio } from "./container-stdio.ts";
import { hugePageBytes } from "./huge-pages.ts";
import type { Machine } from "./machine.ts";
import { isSandboxContainer } from "./plan.ts";
import type { GuestProcess } from "./process.ts";
import { copySmallFiles } from "./small-files.ts";
import { numberStreams } from "./stdio.ts";
import { HUGE_PAGE_BYTES } from "./volume-look.ts";

/** The container, as far as the guest gets to know it. */
interface GuestContainer {
	readonly id: string;
	readonly spec: OciSpec;
	readonly init: GuestProcess;
	/** The layers on its disk; null when that holds one file system. */
	readonly layers: readonly VerityLayer[] | null;
}

/**
 * Has the guest make a container: its files, its storages, its first process, which waits for its start.
 * @param source its disk, as the agent finds it
 */
export async function createInGuest(
	{ id, spec, init, layers }: GuestContainer,
	host: ContainerHost,
	stdio: ContainerStdio,
	source: string,
	signal: AbortSignal,
): Promise<void> {
	const { timeline } = host;
	const machine = host.machine();
	const files = await timeline.step("copy-files", () => copySmallFiles(id, spec, machine.agent, signal));
	const volumes = await timeline.step("volumes", () => host.volumes.prepare({ id, spec }, files, machine, signal));
	const converted = guestSpec(withoutInitdata(spec), {
		containerId: id,
		podPid: host.pid,
		sandbox: isSandboxContainer(spec),
		seccomp: machine.details.seccomp,
		limits: machine.details.limits,
		podSysctls: host.sysctls,
		guestSources: volumes.sources,
		disks: new Set(volumes.devices.map(({ container_path }) => container_path ?? "")),
	});
	nameLeftOut(id, spec.linux?.resources ?? {}, host);
	init.streams = numberStreams(init, () => host.nextNumber());
	host.save();
	const request = {
		container_id: id,
		exec_id: id,
		storages: [
			...(layers === null ? [rootfsStorage(id, source)] : layerStorages(id, source, layers)),
			...hugePages(id, spec, machine),
			...(host.hasScratch ? [upperStorage(id), ...volumes.storages.map(onScratch)] : volumes.storages),
		],
		devices: [...volumes.devices],
		OCI: converted,
		sandbox_pidns: sharesPidNamespace(spec),
		...streamPorts(init, machine),
	};
	await timeline.step("container-create", () => stdio.openWhile(init, () => machine.agent.createContainer(request, { signal })));
}

/** containerd passes a pod's annotations on to its containers; the guest has the initdata from its disk, and it may be large. */
function withoutInitdata(spec: OciSpec): OciSpec {
	const annotations = Object.entries(spec.annotations ?? {}).filter(([name]) => name !== INITDATA_ANNOTATION);
	return { ...spec, annotations: Object.fromEntries(annotations) };
}

/** The huge pages of a container's limits; reserved before its emptyDirs of them are made. @throws ShimError `spec.unsupported` */
function hugePages(id: string, spec: OciSpec, machine: Machine): StorageRequest[] {
	const bytes = hugePageBytes(spec.linux?.resources ?? {});
	return bytes > 0 && machine.details.hugepages ? [hugePagesStorage(id, HUGE_PAGE_BYTES, bytes)] : [];
}

/** Changes limits; those that are left out stay as they are. @throws ShimError `guest.call` for one that the guest can't hold */
export async function updateInGuest(id: string, resources: OciResources, host: ContainerHost): Promise<void> {
	const { agent, details } = host.machine();
	nameLeftOut(id, resources, host);
	await agent.updateContainer(id, guestResources(resources, details));
}

function nameLeftOut(id: string, resources: OciResources, host: ContainerHost): void {
	const leftOut = resourcesLeftOut(resources, host.machine().details);
	if (leftOut.length > 0) host.log.warn("resources that have no place in the guest", { container: id, passedOver: leftOut.join(" ") });
}
