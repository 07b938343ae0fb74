/** The devices of a specification, which were made for the host, as the VM can give them: the guest's own, and disks. Pure. */

import { ShimError } from "../base/errors.ts";
import type { grpc } from "../../proto/gen/agent.js";
import type { OciDevice, OciSpec } from "./oci-spec.ts";

/** Character devices that have the same number and meaning in every kernel (Linux, admin-guide/devices): the guest's own take their place. */
const KNOWN_DEVICES: ReadonlyMap<string, string> = new Map([
	["1:3", "null"],
	["1:5", "zero"],
	["1:7", "full"],
	["1:8", "random"],
	["1:9", "urandom"],
	["1:11", "kmsg"],
	["5:0", "tty"],
	["10:183", "hwrng"],
	["10:200", "net/tun"],
	["10:229", "fuse"],
]);

/**
 * Converts the devices. For a privileged container containerd lists all that the host has: of those the VM's own are kept, since
 * the container may make whatever the guest has.
 * @param disks paths in the container of block devices that the VM was given; the agent knows their numbers
 * @throws ShimError `spec.unsupported` for a device that somebody asked for and that only the host has
 */
export function guestDevices(spec: OciSpec, disks: ReadonlySet<string>): grpc.LinuxDevice.$Properties[] {
	const devices = spec.linux?.devices ?? [];
	const isGiven = (device: OciDevice): boolean => isGuestDevice(device) || (device.type === "b" && disks.has(device.path));
	const foreign = isPrivileged(spec) ? undefined : devices.find((device) => !isGiven(device));
	if (foreign !== undefined) {
		const { path, type, major, minor } = foreign;
		throw new ShimError(
			"spec.unsupported",
			`device ${path} (${type} ${major ?? 0}:${minor ?? 0}) belongs to the host: a VM can't have it; it has ${[...KNOWN_DEVICES.values()].join(", ")} of its own`,
			{ remedy: "take the device out of the pod; docs/volumes.md says what a VM can have" },
		);
	}
	return devices.filter(isGiven).map(guestDevice);
}

/** All devices are allowed: that is how a privileged container is told from one with a device or a capability. */
export function isPrivileged(spec: OciSpec): boolean {
	return (spec.linux?.resources?.devices ?? []).some(
		({ allow, type, major, minor, access }) =>
			allow && (type ?? "a") === "a" && (major ?? -1) === -1 && (minor ?? -1) === -1 && (access ?? "rwm") === "rwm",
	);
}

function isGuestDevice({ type, major, minor }: OciDevice): boolean {
	return type === "p" || ((type === "c" || type === "u") && KNOWN_DEVICES.has(`${major ?? 0}:${minor ?? 0}`));
}

function guestDevice(device: OciDevice): grpc.LinuxDevice.$Properties {
	return {
		Path: device.path,
		Type: device.type,
		Major: device.major ?? 0,
		Minor: device.minor ?? 0,
		FileMode: device.fileMode ?? 0o666,
		UID: device.uid ?? 0,
		GID: device.gid ?? 0,
	};
}
