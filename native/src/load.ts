/** Finds and loads the addon, and turns its answers into results or errors. */

import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { getSystemErrorMap } from "node:util";

/** The raw functions of `*.cc`: each number that they give is a result, or a negative errno. Arguments are not checked there. */
export interface Addon {
	readonly cgroupJoin: (
		roots: readonly string[],
		second: readonly boolean[],
		cpuset: readonly boolean[],
		path: string,
		pids: readonly number[],
	) => Promise<readonly number[]> | number;
	readonly makeFifo: (path: string, mode: number) => number;
	readonly closeFd: (fd: number) => number;
	readonly copyData: (from: number, to: number) => Promise<number> | number;
	readonly listenUnix: (path: string, backlog: number, mode: number, blocking: number) => number;
	readonly connectUnix: (path: string) => number;
	readonly sendFds: (fd: number, bytes: Uint8Array, fds: readonly number[]) => number;
	readonly mount: (source: string, target: string, type: string, flags: number, data: string) => Promise<number>;
	readonly unmount: (target: string, flags: number) => Promise<number>;
	readonly memoryWatch: (pid: number) => number;
	readonly memoryWatchGroup: (usage: string, limit: string, stat: string, pressure: string) => number;
	readonly memoryUnwatch: (id: number) => void;
	readonly memorySample: (detail: number) => Promise<Float64Array | number>;
	readonly netnsCatch: (ns: number) => Promise<readonly number[] | number>;
	readonly netnsNetlink: (ns: number, groups: number) => Promise<readonly number[] | number>;
	readonly netnsTap: (ns: number, name: string, queues: number) => Promise<readonly number[] | number>;
	readonly netlinkExchange: (fd: number, messages: readonly Uint8Array[]) => Promise<ExchangeResult | number>;
	readonly receive: (fd: number, callback: (length: number, bytes: Buffer, fds: readonly number[]) => void) => number;
	readonly unreceive: (id: number) => void;
	readonly releaseConstantPages: () => number;
	readonly pressureWatch: (file: string, trigger: string, callback: () => void) => number;
	readonly pressureUnwatch: (id: number) => void;
	readonly spawn: (
		program: string,
		args: readonly string[],
		folder: string,
		descriptors: readonly number[],
		oomScore: number,
		roots: readonly string[],
		second: readonly boolean[],
		cpuset: readonly boolean[],
		group: string,
	) => Promise<readonly number[]> | number;
	readonly childEnd: (pid: number) => number;
	readonly pidfdOpen: (pid: number) => number;
	readonly pidfdSendSignal: (pidfd: number, signal: number) => number;
	readonly pidfdWatch: (pidfd: number, callback: () => void) => number;
	readonly pidfdUnwatch: (id: number) => void;
}

/** What came of messages to the kernel: the answers up to the first refusal, and that refusal's negative errno (else 0) and whole message. */
export interface ExchangeResult {
	readonly error: number;
	readonly refusal: Buffer;
	readonly answers: readonly Buffer[];
}

const FILE = "snp_native.node";

let loaded: Addon | undefined;

/**
 * The addon, loaded once. A bundled program in `dist/bin` has it in `dist/lib`; in the repository it is where node-gyp puts it.
 * @throws Error that names both places when it is in neither
 */
export function addon(): Addon {
	loaded ??= load();
	return loaded;
}

function load(): Addon {
	const here = dirname(fileURLToPath(import.meta.url));
	const places = [join(here, "..", "lib", FILE), join(here, "..", "..", "build", "Release", FILE)];
	const place = places.find((path) => existsSync(path));
	if (place === undefined) throw new Error(`the native addon is neither at ${places.join(" nor at ")}: build it with npm run build`);
	const module: unknown = createRequire(import.meta.url)(place);
	return module as Addon;
}

/** A failed system call, in the form of Node's own errors: `code` is the errno's name. */
export class SystemError extends Error {
	override readonly name = "SystemError";
	readonly errno: number;
	readonly code: string;
	readonly syscall: string;

	/** @param errno negative, as the kernel and libuv count */
	constructor(errno: number, syscall: string, subject: string) {
		const [code, text] = getSystemErrorMap().get(errno) ?? [`E${-errno}`, "unknown error"];
		super(`${code}: ${text}, ${syscall} ${subject}`);
		this.errno = errno;
		this.code = code;
		this.syscall = syscall;
	}
}

/**
 * Passes a result on.
 * @throws SystemError when it is a negative errno
 */
export function checked(result: number, syscall: string, subject: string): number {
	if (result < 0) throw new SystemError(result, syscall, subject);
	return result;
}

/**
 * Checks that a text may be handed to a system call.
 * @throws TypeError when it holds a NUL, at which the kernel would cut it
 */
export function plain(text: string, name: string): string {
	if (typeof text !== "string" || text.includes("\0")) throw new TypeError(`${name} must be a text without NUL characters`);
	return text;
}

/**
 * Checks that a number is a whole one in a range.
 * @throws RangeError when it is not
 */
export function whole(value: number, name: string, least: number, most: number): number {
	if (!Number.isSafeInteger(value) || value < least || value > most)
		throw new RangeError(`${name} must be a whole number from ${least} to ${most}, not ${value}`);
	return value;
}

/** The largest descriptor, pid and other `int` of the kernel. */
export const MAX_INT = 2 ** 31 - 1;
