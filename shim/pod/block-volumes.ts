/** Block devices that a container's specification asks for: disks of the node that its VM is given (Kubernetes: `volumeMode: Block`). */

import { isPrivileged } from "../agent/guest-devices.ts";
import type { OciDevice, OciSpec } from "../agent/oci-spec.ts";
import { messageOf, ShimError } from "../base/errors.ts";
import { diskByNumber } from "../host/disks.ts";
import type { HostDisk } from "../host/disks.ts";

/** A disk, and the path of its device in the container. */
export interface BlockVolume {
	readonly containerPath: string;
	readonly disk: HostDisk;
}

/**
 * Finds the block devices of a specification. Of a privileged container, for which containerd lists all devices of the node, those count that have
 * another path than on the node: somebody asked for them.
 * @throws ShimError `volume.missing` for a device that the node does not have (any more)
 */
export async function blockVolumes(spec: OciSpec): Promise<BlockVolume[]> {
	const devices = (spec.linux?.devices ?? []).filter(({ type }) => type === "b");
	const privileged = isPrivileged(spec);
	const found: BlockVolume[] = [];
	for (const device of devices) {
		const disk = await lookUp(device);
		if (privileged && (disk === undefined || disk.path === device.path)) continue;
		if (disk === undefined)
			throw new ShimError("volume.missing", `device ${device.path}: the node has no block device ${numbersOf(device)}`);
		found.push({ containerPath: device.path, disk: { ...disk, readonly: disk.readonly || !mayWrite(device, spec) } });
	}
	return found;
}

const numbersOf = ({ major, minor }: OciDevice): string => `${major ?? 0}:${minor ?? 0}`;

async function lookUp(device: OciDevice): Promise<HostDisk | undefined> {
	try {
		return await diskByNumber(device.major ?? 0, device.minor ?? 0);
	} catch (error) {
		throw new ShimError("volume.copy", `device ${device.path} (${numbersOf(device)}) can't be looked at: ${messageOf(error)}`, {
			cause: error,
		});
	}
}

/** What the last rule for the device allows; without one, all (OCI runtime specification, config-linux, allowed device list). */
function mayWrite(device: OciDevice, spec: OciSpec): boolean {
	const rule = (spec.linux?.resources?.devices ?? []).findLast(
		({ allow, type, major, minor }) => allow && type === "b" && major === device.major && minor === device.minor,
	);
	return rule === undefined || (rule.access ?? "rwm").includes("w");
}
