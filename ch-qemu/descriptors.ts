/** Descriptors that came from a client: closed unless somebody takes them. */
import { closeFd } from "../native/src/file.ts";

/** The descriptors of one request. */
export class Descriptors {
	#fds: number[];

	constructor(fds: readonly number[] = []) {
		this.#fds = [...fds];
	}

	/** Hands them over: the caller closes them. */
	take(): number[] {
		return this.#fds.splice(0);
	}

	/** Closes what nobody took. */
	close(): void {
		closeAll(this.take());
	}
}

/** Closes descriptors. */
export function closeAll(fds: readonly number[]): void {
	for (const fd of fds) closeFd(fd);
}
