/** What lies on the host where a container's bind mounts have their sources, and what was decided on each. */

import { lstat, stat, statfs } from "node:fs/promises";

import { SHM_PLACE } from "../agent/guest-spec.ts";
import type { OciMount } from "../agent/oci-spec.ts";
import { emptyDirStorage, hugeEmptyDirStorage } from "../agent/storages.ts";
import type { StorageRequest } from "../agent/storages.ts";
import { errnoOf, messageOf, ShimError } from "../base/errors.ts";
import { DIRECT_VOLUMES_DIR } from "../base/names.ts";
import { readDirectVolume } from "../storage/direct-volume.ts";
import type { DirectVolume } from "../storage/direct-volume.ts";
import { missing } from "../storage/folder-tree.ts";
import { directCandidates, planVolume } from "../storage/volume-plan.ts";
import type { SourceType, TableEntry, VolumePlan } from "../storage/volume-plan.ts";

const MODE_BITS = 0o7777;

/** One mount with what was decided on it. */
export interface PlannedMount {
	readonly mount: OciMount;
	readonly plan: VolumePlan;
	/** What is on a direct-assigned volume; for the plan of that kind. */
	readonly direct: DirectVolume | undefined;
}

async function sourceType(path: string): Promise<SourceType> {
	try {
		const stats = await stat(path);
		if (stats.isFile()) return "file";
		if (stats.isDirectory()) return "folder";
		if (stats.isSocket()) return "socket";
		if (stats.isFIFO()) return "fifo";
		return stats.isBlockDevice() ? "block-device" : "character-device";
	} catch (error) {
		if (errnoOf(error) === "ENOENT" || errnoOf(error) === "ENOTDIR") return "missing";
		throw new ShimError("volume.copy", `the volume ${path} can't be looked at: ${messageOf(error)}`, { cause: error });
	}
}

const exists = (path: string): Promise<boolean> =>
	lstat(path).then(
		() => true,
		() => false,
	);

async function isAtomic(path: string): Promise<boolean> {
	return await lstat(`${path}/..data`).then(
		(stats) => stats.isSymbolicLink(),
		() => false,
	);
}

/** The direct-assigned volume that a mount is or lies in. */
async function findDirect(
	source: string,
	table: readonly TableEntry[],
): Promise<{ readonly path: string; readonly volume: DirectVolume } | undefined> {
	for (const path of directCandidates(source, table)) {
		const volume = await readDirectVolume(DIRECT_VOLUMES_DIR, path);
		if (volume !== undefined) return { path, volume };
	}
	return undefined;
}

/**
 * Decides on all mounts before anything is brought. The pod's own /dev/shm is left out.
 * @param share folders may be shared with the VM
 * @throws ShimError `volume.copy`, `volume.invalid`
 */
export async function planMounts(mounts: readonly OciMount[], table: readonly TableEntry[], share: boolean): Promise<PlannedMount[]> {
	const planned: PlannedMount[] = [];
	const anyDirect = await exists(DIRECT_VOLUMES_DIR);
	for (const mount of mounts) {
		const { destination, options } = mount;
		const source = mount.source ?? "";
		const readonly = (options ?? []).some((option) => option === "ro" || option === "rro");
		const type = await sourceType(source);
		const atomic = type === "folder" && (await isAtomic(source));
		const direct = anyDirect ? await naming(destination, () => findDirect(source, table)) : undefined;
		const plan = planVolume({ destination, source, readonly, type, atomic, direct: direct?.path, share }, table);
		if (destination === SHM_PLACE && plan.kind !== "memory" && plan.kind !== "scratch") continue;
		planned.push({ mount, plan, direct: direct?.volume });
	}
	return planned;
}

/** Puts the mount's name in front of what goes wrong. */
export async function naming<T>(destination: string, work: () => Promise<T>): Promise<T> {
	try {
		return await work();
	} catch (error) {
		if (!(error instanceof ShimError) || error.message.startsWith("mount ")) throw error;
		throw new ShimError(error.reason, `mount ${destination}: ${error.message}`, { cause: error, remedy: error.remedy });
	}
}

/** What an emptyDir is made of: the guest's memory, a disk, huge pages. */
export type EmptyDirKind = "memory" | "scratch" | "huge";

/**
 * The guest's own emptyDir with the owner, the mode and (in memory) the size that the node's has.
 * @param path kubelet's folder
 * @param volume the guest's
 * @param pagesReserved huge pages are reserved by containers' limits
 * @throws ShimError `volume.missing`, `volume.copy`; `spec.unsupported` for huge pages of a size that a VM has not
 */
export async function emptyDir(kind: EmptyDirKind, path: string, volume: string, pagesReserved: boolean): Promise<StorageRequest> {
	try {
		const { mode, uid, gid } = await stat(path);
		const { blocks, bsize } = await statfs(path);
		const owned = { volume, mode: mode & MODE_BITS, uid, gid };
		if (kind !== "huge") return emptyDirStorage({ ...owned, kind, sizeBytes: kind === "memory" ? blocks * bsize : 0 });
		requirePageSize(path, bsize);
		return hugeEmptyDirStorage({ ...owned, pageBytes: bsize, sizeBytes: blocks * bsize, reserved: pagesReserved });
	} catch (error) {
		if (error instanceof ShimError) throw error;
		if (errnoOf(error) === "ENOENT") throw missing(path);
		throw new ShimError("volume.copy", `the volume ${path} can't be looked at: ${messageOf(error)}`, { cause: error });
	}
}

/** The size of the huge pages that a VM has, in bytes. */
export const HUGE_PAGE_BYTES = 2 * 1024 * 1024;

function requirePageSize(path: string, bytes: number): void {
	if (bytes === HUGE_PAGE_BYTES) return;
	throw new ShimError("spec.unsupported", `${path} is an emptyDir of huge pages of ${bytes / 1024} KiB: a VM has those of 2 MiB`, {
		remedy: "use medium: HugePages-2Mi",
	});
}
