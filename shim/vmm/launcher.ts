/**
 * Starts Cloud Hypervisor, and takes up one that an earlier snpd started. Everything that the two share is a file in the VMM's folder, so that either may
 * die and the other goes on: the API socket (bound here, handed over as a descriptor: nothing to poll), the log, and the FIFO of events.
 */

import { closeSync, constants, openSync, rmSync } from "node:fs";
import { access, stat } from "node:fs/promises";
import { isAbsolute } from "node:path";

import { errnoOf, messageOf, ShimError } from "../base/errors.ts";
import type { HostCgroup } from "../host/cgroups.ts";
import { makeFifo } from "../host/filesystem.ts";
import { ProcessHandle } from "../host/processes.ts";
import { startProgram } from "../host/programs.ts";
import type { StartedProgram } from "../host/programs.ts";
import { listenUnix, MAX_SOCKET_PATH_BYTES } from "../host/sockets.ts";
import { readEvents } from "./events.ts";
import type { OnVmmEvent } from "./events.ts";
import { Vmm, vmmFiles } from "./vmm.ts";
import type { VmmExit, VmmFiles } from "./vmm.ts";

export { Vmm, vmmFiles } from "./vmm.ts";
export type { VmmExit, VmmFiles } from "./vmm.ts";
export type { OnVmmEvent, VmmEvent } from "./events.ts";

/** An option that every VMM has that was started here. */
export const API_SOCKET_OPTION = "--api-socket";

/** How much the VMM logs: `warn` is its default. */
export type VmmLogLevel = "warn" | "info" | "debug" | "trace";

/** How a VMM is started. */
export interface LaunchOptions {
	/** Absolute path of the program. */
	readonly hypervisorPath: string;
	/** An existing folder that belongs to this VMM; its files are those of `vmmFiles`. */
	readonly folder: string;
	readonly logLevel?: VmmLogLevel | undefined;
	/** What the VMM does at a system call that it does not expect: `true` (its default) kills it. */
	readonly seccomp?: "true" | "false" | "log" | "errno" | undefined;
	readonly onEvent?: OnVmmEvent | undefined;
	/** The group that the VMM is in from its first instruction on; undefined: this process's. */
	readonly cgroup?: HostCgroup | undefined;
	/** How readily the kernel ends it when memory runs out (proc(5), oom_score_adj); 0 unless given. */
	readonly oomScore?: number | undefined;
	/** Aborting it before the process is started ends the launch. */
	readonly signal?: AbortSignal | undefined;
}

/** What must be known of a VMM to take it up again. */
export interface AdoptOptions {
	readonly pid: number;
	readonly startTime: bigint;
	readonly folder: string;
	readonly onEvent?: OnVmmEvent | undefined;
}

/** The first descriptors that are not standard ones: their order is that of `descriptors` in `start`. */
const API_FD = 3;
const EVENTS_FD = 4;
const LOG_FLAGS: Readonly<Record<VmmLogLevel, readonly string[]>> = { warn: [], info: ["-v"], debug: ["-vv"], trace: ["-vvv"] };

/**
 * Starts a VMM without a VM: own session, empty environment, the folder as its working directory. It may be called at once through `client`; a program
 * that ends early is reported by the first call. The caller kills it; it outlives this process otherwise, and does not keep it alive.
 * @throws ShimError vmm.missing, vmm.launch, wait.canceled, host.cgroup
 */
export async function launchVmm(options: LaunchOptions): Promise<Vmm> {
	const { hypervisorPath, folder, signal } = options;
	if (!isAbsolute(hypervisorPath))
		throw new ShimError("vmm.missing", `the hypervisor's path ${JSON.stringify(hypervisorPath)} is not absolute`);
	const files = vmmFiles(folder);
	if (Buffer.byteLength(files.apiSocket) > MAX_SOCKET_PATH_BYTES)
		throw new ShimError("vmm.launch", `${files.apiSocket} is longer than ${MAX_SOCKET_PATH_BYTES} bytes`, { remedy: "shorten state_dir" });
	if (signal?.aborted === true) throw new ShimError("wait.canceled", "the start of the hypervisor was canceled", { cause: signal.reason });
	const stop: (() => void)[] = [];
	try {
		removeOld(files);
		return vmmOf(await start(options, stop), folder, stop);
	} catch (error) {
		for (const undo of stop) undo();
		removeOld(files);
		if (error instanceof ShimError) throw error;
		// Only the kernel knows for sure whether a program can be run; here it is told more closely why not.
		await checkProgram(hypervisorPath);
		throw new ShimError("vmm.launch", `starting ${hypervisorPath} in ${folder}: ${messageOf(error)}`, { cause: error });
	}
}

/** What a killed VMM, or a launch that failed, left would be in the way. */
function removeOld(files: VmmFiles): void {
	for (const path of [files.apiSocket, files.events]) rmSync(path, { force: true });
}

/** Opens everything and starts the program; the descriptors that it has by then are closed here. */
async function start(options: LaunchOptions, stop: (() => void)[]): Promise<StartedProgram> {
	const files = vmmFiles(options.folder);
	const handedOver: number[] = [];
	try {
		handedOver.push(listenUnix(files.apiSocket));
		makeFifo(files.events, 0o600);
		// Open for both, in the VMM too: its events then wait in the pipe while nobody reads them, and are never an error.
		handedOver.push(openSync(files.events, constants.O_RDWR | constants.O_NONBLOCK));
		stop.push(readEvents(files.events, options.onEvent ?? (() => undefined)));
		const log = openSync(files.log, constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT, 0o600);
		handedOver.push(log);
		const descriptors = ["null", log, log, ...handedOver.slice(0, 2)] as const;
		const { hypervisorPath: program, folder, cgroup, oomScore = 0 } = options;
		return await startProgram({ program, args: argumentsOf(options), folder, descriptors, cgroup, oomScore });
	} finally {
		for (const fd of handedOver) closeSync(fd);
	}
}

function vmmOf({ handle, ended }: StartedProgram, folder: string, stop: readonly (() => void)[]): Vmm {
	try {
		return new Vmm(
			folder,
			handle,
			ended.then(({ code, signal }) => exitOf(code, signal)),
			stop,
		);
	} catch (error) {
		handle.kill("SIGKILL");
		handle.close();
		throw error;
	}
}

function argumentsOf(options: LaunchOptions): string[] {
	const args = [API_SOCKET_OPTION, `fd=${API_FD}`, "--event-monitor", `fd=${EVENTS_FD}`, ...LOG_FLAGS[options.logLevel ?? "warn"]];
	if (options.seccomp !== undefined) args.push("--seccomp", options.seccomp);
	return args;
}

function exitOf(code: number | undefined, signal: NodeJS.Signals | undefined): VmmExit {
	const text = signal !== undefined ? `was killed by ${signal}` : code !== undefined ? `ended with exit code ${code}` : "ended";
	return { code, signal, text };
}

/** @throws ShimError `vmm.missing` when there is no program that can be run */
async function checkProgram(path: string): Promise<void> {
	try {
		const stats = await stat(path);
		if (!stats.isFile()) throw new ShimError("vmm.missing", `the hypervisor ${path} is not a file`);
		await access(path, constants.X_OK);
	} catch (error) {
		if (error instanceof ShimError) throw error;
		const text = errnoOf(error) === "ENOENT" ? "does not exist" : errnoOf(error) === "EACCES" ? "is not executable" : messageOf(error);
		throw new ShimError("vmm.missing", `the hypervisor ${path} ${text}`, { cause: error });
	}
}

/**
 * Takes up a VMM that an earlier process started. Events that nobody has read yet are delivered; one that the earlier process had half read is lost.
 * @returns undefined when the process is gone
 * @throws ShimError vmm.launch when its files can't be opened
 */
export function adoptVmm(options: AdoptOptions): Vmm | undefined {
	const handle = ProcessHandle.open(options.pid, options.startTime);
	if (handle === undefined) return undefined;
	const files = vmmFiles(options.folder);
	const stop: (() => void)[] = [];
	try {
		stop.push(readEvents(files.events, options.onEvent ?? (() => undefined)));
		return new Vmm(
			options.folder,
			handle,
			handle.exited.then(() => exitOf(undefined, undefined)),
			stop,
		);
	} catch (error) {
		for (const undo of stop) undo();
		handle.close();
		throw new ShimError("vmm.launch", `taking up process ${options.pid} in ${options.folder}: ${messageOf(error)}`, { cause: error });
	}
}
