/** The storages that the agent is asked for, in the Kata agent protocol's form. */

import { types } from "../../proto/gen/agent.js";
import type { grpc } from "../../proto/gen/agent.js";
import { guestRootfs } from "./guest-spec.ts";

const { Always, OnRootMismatch } = types.FSGroupChangePolicy;

/** A storage of a CreateSandbox or CreateContainer request. */
export type StorageRequest = grpc.Storage.$Properties;

/** A block device of a CreateContainer request. */
export type DeviceRequest = grpc.Device.$Properties;

/** containerd's default size of /dev/shm (64 MiB). */
const SHM_BYTES = 64 * 1024 * 1024;

/**
 * A container's root file system: a read-only EROFS disk with a writable layer in the guest's memory on top (multi-layer storage).
 * @param source the disk, as the agent finds it: see `deviceSource`
 */
export function rootfsStorage(containerId: string, source: string): StorageRequest {
	return {
		driver: "blk",
		source,
		fstype: "erofs",
		mount_point: guestRootfs(containerId),
		options: ["X-kata.overlay-lower", "X-kata.multi-layer=true"],
	};
}

/** A layer of a partitioned disk, as dm-verity needs to know it. */
export interface VerityLayer {
	/** What comes before the hash tree. */
	readonly dataBytes: number;
	/** 64 hexadecimal digits. */
	readonly rootHash: string;
	/** Hexadecimal digits; 32 bytes of zeros unless given. */
	readonly salt?: string | undefined;
}

/** dm-verity's salt of our own layers. */
const ZERO_SALT = "0".repeat(64);

/**
 * A container's root file system of layers, each of which the guest checks against its root hash as it reads (docs/contracts.md, "Layers").
 * @param source the disk, see `deviceSource`
 * @param layers one for each partition, topmost first
 */
export function layerStorages(containerId: string, source: string, layers: readonly VerityLayer[]): StorageRequest[] {
	return layers.map(({ dataBytes, rootHash, salt }, index) => ({
		driver: "blk",
		source,
		fstype: "erofs",
		mount_point: guestRootfs(containerId),
		options: [
			"ro",
			"X-kata.overlay-lower",
			"X-kata.multi-layer=true",
			"X-kata.gpt-partitioned=true",
			`X-kata.partition-number=${index + 1}`,
			"X-kata.dmverity-enabled=true",
			`X-kata.dmverity.roothash=${rootHash}`,
			`X-kata.dmverity.hashoffset=${dataBytes}`,
			"X-kata.dmverity.no-superblock=true",
			`X-kata.dmverity.salt=${salt ?? ZERO_SALT}`,
			"X-kata.dmverity.blocksize=4096",
			"X-kata.dmverity.hashsize=4096",
			"X-kata.dmverity.algorithm=sha256",
			"X-kata.dmverity.hashtype=1",
		],
	}));
}

/** Where the pod's writable disk is mounted in the guest. */
const GUEST_SCRATCH = "/run/kata-containers/sandbox/scratch";

const IN_SCRATCH = `X-snp.in=${GUEST_SCRATCH}`;

/**
 * The pod's writable disk, of zeros: the agent makes an encrypted file system on it while the host goes on (capability `snp.scratch.v1`).
 * @param source the disk, see `deviceSource`
 */
export function scratchStorage(source: string): StorageRequest {
	return {
		driver: "blk",
		source,
		fstype: "btrfs",
		mount_point: GUEST_SCRATCH,
		options: ["X-snp.background"],
		driver_options: ["encryption_key=ephemeral", "create_filesystem"],
	};
}

/** The storage as it is in a pod with a writable disk: folders of the guest lie there. */
export function onScratch(storage: StorageRequest): StorageRequest {
	return storage.driver === "local" ? { ...storage, options: [...(storage.options ?? []), IN_SCRATCH] } : storage;
}

/** A container's writable layer, in a folder of the pod's writable disk. */
export function upperStorage(containerId: string): StorageRequest {
	return {
		driver: "blk",
		source: GUEST_SCRATCH,
		fstype: "btrfs",
		mount_point: guestRootfs(containerId),
		options: ["rw", "X-kata.overlay-upper", "X-kata.multi-layer=true", IN_SCRATCH],
	};
}

/**
 * What the agent is told of a device's place: Kata's agent takes two hexadecimal digits, the slot on bus 0 of the first PCI segment; our own the
 * whole address as well.
 * @param bdf a PCI address, `0000:00:1f.0`
 * @param anyPlace the agent has the capability `snp.pci.v1`
 * @returns undefined when the agent can't find the device
 */
export function deviceSource(bdf: string, anyPlace: boolean): string | undefined {
	const address = /^[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$/.exec(bdf.toLowerCase())?.[0];
	if (address === undefined) return undefined;
	return /^0000:00:(..)\.0$/.exec(address)?.[1] ?? (anyPlace ? address : undefined);
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

/**
 * An emptyDir with a disk of its own, of zeros: the agent makes an encrypted file system on it, which stays as long as the sandbox (capability
 * `snp.scratch.v1`, and Kata's own form).
 * @param source the disk, see `deviceSource`
 */
export function emptyDirDiskStorage(emptyDir: StorageRequest, source: string): StorageRequest {
	return { ...emptyDir, driver: "blk", source, fstype: "btrfs", driver_options: ["encryption_key=ephemeral", "create_filesystem"] };
}

/** A file system on a disk of the node. */
export interface DiskVolume {
	/** The guest's folder. */
	readonly volume: string;
	/** The disk, as the agent finds it: see `deviceSource`. */
	readonly source: string;
	readonly fstype: string;
	readonly options: readonly string[];
	readonly group: { readonly id: number; readonly onRootMismatch: boolean } | undefined;
}

/** A disk's file system that containers of the pod share; the guest unmounts it with the last of them. */
export function diskStorage({ volume, source, fstype, options, group }: DiskVolume): StorageRequest {
	return {
		driver: "blk",
		source,
		fstype,
		mount_point: volume,
		options: [...options],
		...(group === undefined
			? {}
			: { fs_group: { group_id: group.id, group_change_policy: group.onRootMismatch ? OnRootMismatch : Always } }),
	};
}

/** An emptyDir of huge pages. */
export interface HugeEmptyDir {
	/** The guest's folder. */
	readonly volume: string;
	readonly mode: number;
	readonly uid: number;
	readonly gid: number;
	readonly pageBytes: number;
	/** 0: as many as the guest has. */
	readonly sizeBytes: number;
	/** The pages are reserved elsewhere: by the containers' limits (`hugePagesStorage`). */
	readonly reserved: boolean;
}

/** A hugetlbfs that the pod's containers share. */
export function hugeEmptyDirStorage({ volume, mode, uid, gid, pageBytes, sizeBytes, reserved }: HugeEmptyDir): StorageRequest {
	return {
		driver: "ephemeral",
		source: "nodev",
		fstype: "hugetlbfs",
		mount_point: volume,
		options: [
			`pagesize=${pageBytes}`,
			...(sizeBytes > 0 ? [`size=${sizeBytes}`] : []),
			`mode=${mode.toString(8)}`,
			`uid=${uid}`,
			`gid=${gid}`,
			...(reserved ? ["X-snp.reserved"] : []),
		],
	};
}

/** Huge pages that one container may use: the guest reserves them before it and takes them back after it, for agents with `hugepages`. */
export function hugePagesStorage(containerId: string, pageBytes: number, sizeBytes: number): StorageRequest {
	return {
		driver: "snp.hugepages",
		source: String(pageBytes),
		fstype: "hugetlbfs",
		mount_point: `/run/kata-containers/snp/${containerId}/hugepages`,
		options: [`size=${sizeBytes}`],
	};
}

/** A folder of the node that the VM shares. */
export function shareStorage(volume: string, tag: string): StorageRequest {
	return { driver: "virtio-fs", source: tag, fstype: "virtiofs", mount_point: volume, options: [] };
}
