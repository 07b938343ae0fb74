/** pidfds: descriptors that mean one process for ever, whatever becomes of its number. */

import { addon, checked, MAX_INT, whole } from "./load.ts";

const MAX_SIGNAL = 64;

/**
 * Opens a pidfd (pidfd_open(2)).
 * @returns the descriptor: the caller closes it with `closeFd`
 * @throws SystemError: ESRCH when there is no such process
 */
export function pidfdOpen(pid: number): number {
	return checked(addon().pidfdOpen(whole(pid, "pid", 1, MAX_INT)), "pidfd_open", String(pid));
}

/**
 * Sends a signal (pidfd_send_signal(2)); 0 only asks whether the process is there.
 * @throws SystemError: ESRCH when the process has ended and was waited for
 */
export function pidfdSendSignal(pidfd: number, signal: number): void {
	checked(
		addon().pidfdSendSignal(whole(pidfd, "pidfd", 0, MAX_INT), whole(signal, "signal", 0, MAX_SIGNAL)),
		"pidfd_send_signal",
		String(signal),
	);
}

/**
 * Calls back once when the process has ended, also when it had ended before. The watch does not keep the program alive, and holds a copy of the descriptor.
 * @returns how to give the watch up; harmless after the call
 * @throws SystemError: EBADF, ENOMEM
 */
export function pidfdWatch(pidfd: number, callback: () => void): () => void {
	if (typeof callback !== "function") throw new TypeError("callback must be a function");
	const native = addon();
	const id = checked(native.pidfdWatch(whole(pidfd, "pidfd", 0, MAX_INT), callback), "pidfd watch", String(pidfd));
	return () => native.pidfdUnwatch(id);
}
