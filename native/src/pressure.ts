/** The kernel's word that tasks wait too long for something (pressure stall information). */

import { addon, checked, plain, whole } from "./load.ts";

/** The kernel takes windows of this length; without CAP_SYS_RESOURCE only multiples of two seconds (accounting/psi). */
const MIN_WINDOW_US = 500_000;
const MAX_WINDOW_US = 10_000_000;

/**
 * Calls back when some tasks have waited for `stallUs` within `windowUs`, at most once in a window. The watch does not keep the program alive.
 * @param file `/proc/pressure/memory`, or `memory.pressure` of a control group
 * @returns how to end it
 * @throws SystemError: ENOENT and EOPNOTSUPP where the kernel has no pressure information, EPERM, EINVAL
 */
export function pressureWatch(file: string, stallUs: number, windowUs: number, callback: () => void): () => void {
	if (typeof callback !== "function") throw new TypeError("callback must be a function");
	const native = addon();
	const window = whole(windowUs, "windowUs", MIN_WINDOW_US, MAX_WINDOW_US);
	const words = `some ${whole(stallUs, "stallUs", 1, window)} ${window}`;
	const id = checked(native.pressureWatch(plain(file, "file"), words, callback), "watch pressure", file);
	return () => native.pressureUnwatch(id);
}
