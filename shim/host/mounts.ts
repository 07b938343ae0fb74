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

/** The mount points at or below `folder`, the newest first, so that they can be unmounted in this order (`/proc/self/mountinfo`, proc(5)). */
export async function mountsUnder(folder: string): Promise<string[]> {
	const table = await readFile("/proc/self/mountinfo", "utf8");
	const places = table
		.split("\n")
		.map((line) => line.split(" ")[4] ?? "")
		.map(unescapeOctal);
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
