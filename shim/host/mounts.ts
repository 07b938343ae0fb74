/** Mounts in snpd's own mount namespace. */

import { readFile } from "node:fs/promises";

import { MNT, MS, mount as mountRaw, unmount as unmountRaw } from "../../native/src/mount.ts";
import { errnoOf, messageOf, ShimError } from "../base/errors.ts";
import type { Scope } from "../base/scope.ts";
import { parseMountOptions } from "./mount-options.ts";

/** A mount in containerd's form (`containerd.types.Mount`). */
export interface Mount {
	readonly type: string;
	readonly source: string;
	/** Below the place where the list is mounted; empty for the place itself. */
	readonly target: string;
	readonly options: readonly string[];
}

/**
 * Mounts one file system at `place`, and unmounts it lazily when the scope closes.
 * A bind mount takes its other flags (`ro`, `nosuid`...) by a remount, and propagation is changed last, as mount(2) demands.
 * @throws ShimError storage.mount; spec.unsupported for loop mounts, which need a device
 */
export async function mountIn(scope: Scope, mount: Omit<Mount, "target">, place: string): Promise<void> {
	const parsed = parseMountOptions(mount.options);
	if (parsed.loop) throw new ShimError("storage.mount", `${mount.source} asks for a loop device at ${place}, which is not set up here`);
	const bind = (parsed.flags & MS.BIND) !== 0;
	const first = bind ? parsed.flags & (MS.BIND + MS.REC) : parsed.flags;
	try {
		await mountRaw(mount.source, place, bind ? "bind" : mount.type, first, parsed.data);
		scope.defer(`mount ${place}`, () => unmount(place));
		const further = parsed.flags & ~(MS.BIND + MS.REC);
		if (bind && further !== 0) await mountRaw("", place, "", (MS.BIND + MS.REMOUNT + further) >>> 0, "");
		if (parsed.propagation !== 0) await mountRaw("", place, "", parsed.propagation, "");
	} catch (error) {
		throw new ShimError("storage.mount", `mounting ${mount.type} ${mount.source} at ${place}: ${messageOf(error)}`, { cause: error });
	}
}

/**
 * Unmounts `place` lazily: it is out of sight at once, and gone when its last user is. Nothing mounted there is success.
 * @throws SystemError: EPERM, EBUSY
 */
export async function unmount(place: string): Promise<void> {
	try {
		await unmountRaw(place, MNT.DETACH + MNT.NOFOLLOW);
	} catch (error) {
		// EINVAL: not a mount point.
		if (errnoOf(error) !== "EINVAL" && errnoOf(error) !== "ENOENT") throw error;
	}
}

/** One line of the table of mounts. */
export interface MountEntry {
	/** Where it is mounted. */
	readonly place: string;
	/** The folder or file of the file system that is seen there; what was removed since ends in `//deleted`. */
	readonly root: string;
	/** `major:minor` of the file system. */
	readonly device: string;
	/** The file system's type: `tmpfs`, `ext4`. */
	readonly type: string;
}

/** Reads a table of mounts: `/proc/PID/mountinfo` (proc(5)), in the order of mounting; lines of another form are passed over. */
export function parseMountTable(text: string): MountEntry[] {
	return text.split("\n").flatMap((line) => {
		const [head = "", tail = ""] = line.split(" - ");
		const [, , device, root, place] = head.split(" ");
		const [type] = tail.split(" ");
		if (device === undefined || root === undefined || place === undefined || type === undefined) return [];
		return [{ place: unescapeOctal(place), root: unescapeOctal(root), device, type }];
	});
}

/** The mounts of snpd's own mount namespace, in the order of mounting. */
export async function mountTable(): Promise<MountEntry[]> {
	return parseMountTable(await readFile("/proc/self/mountinfo", "utf8"));
}

/** The mount points at or below `folder`, the newest first, so that they can be unmounted in this order. */
export async function mountsUnder(folder: string): Promise<string[]> {
	const places = (await mountTable()).map(({ place }) => place);
	return places.filter((place) => place === folder || place.startsWith(`${folder}/`)).reverse();
}

/** The kernel writes space, tab, newline and backslash as three octal digits. */
function unescapeOctal(text: string): string {
	return text.replace(/\\([0-7]{3})/g, (_match, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));
}

/** Unmounts everything at or below `folder`: what a crash may have left. */
export async function unmountUnder(folder: string): Promise<void> {
	for (const place of await mountsUnder(folder)) await unmount(place);
}
