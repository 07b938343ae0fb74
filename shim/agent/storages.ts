/** The storages that the agent is asked for, in the Kata agent protocol's form. */

import type { grpc } from "../../proto/gen/agent.js";
import { guestRootfs } from "./guest-spec.ts";

/** A storage of a CreateSandbox or CreateContainer request. */
export type StorageRequest = grpc.Storage.$Properties;

/** containerd's default size of /dev/shm (64 MiB). */
const SHM_BYTES = 64 * 1024 * 1024;

/**
 * A container's root file system: a read-only EROFS disk with a writable layer in the guest's memory on top (multi-layer storage).
 * @param slot the disk's PCI slot on bus 0, two hexadecimal digits
 */
export function rootfsStorage(containerId: string, slot: string): StorageRequest {
	return {
		driver: "blk",
		source: slot,
		fstype: "erofs",
		mount_point: guestRootfs(containerId),
		options: ["X-kata.overlay-lower", "X-kata.multi-layer=true"],
	};
}

/** The shared memory of a pod's containers. */
export function shmStorage(): StorageRequest {
	return {
		driver: "ephemeral",
		source: "shm",
		fstype: "tmpfs",
		mount_point: "/run/kata-containers/sandbox/shm",
		options: ["noexec", "nosuid", "nodev", "mode=1777", `size=${SHM_BYTES}`],
	};
}

/** An emptyDir of a pod, as the node has it. */
export interface EmptyDir {
	readonly kind: "memory" | "scratch";
	/** The guest's folder. */
	readonly volume: string;
	/** The lower twelve bits of a mode. */
	readonly mode: number;
	readonly uid: number;
	readonly gid: number;
	/** Of one in memory; 0: as large as the guest lets it be. */
	readonly sizeBytes: number;
}

/** An emptyDir that the pod's containers share: a tmpfs of its own, or a folder of the guest. */
export function emptyDirStorage({ kind, volume, mode, uid, gid, sizeBytes }: EmptyDir): StorageRequest {
	const octal = mode.toString(8);
	if (kind === "memory") {
		const size = sizeBytes > 0 ? [`size=${sizeBytes}`] : [];
		return {
			driver: "ephemeral",
			source: "tmpfs",
			fstype: "tmpfs",
			mount_point: volume,
			options: [...size, `mode=${octal}`, `uid=${uid}`, `gid=${gid}`],
		};
	}
	// The order counts: a change of the group sets mode bits of its own.
	const group = gid === 0 ? [] : [`fsgid=${gid}`];
	const user = uid === 0 ? [] : [`uid=${uid}`];
	return { driver: "local", source: "local", fstype: "local", mount_point: volume, options: [...group, ...user, `mode=${octal}`] };
}
