/**
 * virtiofsd: serves one folder of the host to one VM. Its socket listens before it starts, so that the VMM never waits for it; it ends by itself when
 * the VMM does.
 */

import { constants, openSync } from "node:fs";
import { access, readFile, rm } from "node:fs/promises";

import { messageOf, ShimError } from "../base/errors.ts";
import type { HostCgroup } from "../host/cgroups.ts";
import { findProcesses, ProcessHandle } from "../host/processes.ts";
import { startProgram } from "../host/programs.ts";
import { closeFd, listenUnix, MAX_SOCKET_PATH_BYTES } from "../host/sockets.ts";

/** What serves what. */
export interface ShareOptions {
	/** The program: virtiofsd in Rust, or that of QEMU up to 7.2. */
	readonly program: string;
	/** The folder that the VM gets. */
	readonly source: string;
	/** Where the VMM connects to; its log is beside it. */
	readonly socket: string;
	/** An existing folder of the VM's, in which it works. */
	readonly folder: string;
	/** The VM's control group. */
	readonly cgroup: HostCgroup | undefined;
}

/** A process that may have ended. */
export interface ShareProcess {
	readonly pid: number;
	readonly startTime: string;
}

/** A running virtiofsd. The caller ends it. */
export interface ShareDaemon extends ShareProcess {
	/** Settles with its last words when it has ended. */
	readonly ended: Promise<string>;
}

/** By this argument and its folder it is found after a crash. */
export const SHARE_OPTION = "--fd=3";
const LAST_WORDS_CHARACTERS = 400;
const KILL_WAIT_MS = 5_000;

/** The form that both programs take; `xattr` lets overlays and file capabilities work. */
const optionsFor = (source: string): string => `source=${source},xattr,cache=auto`;

/**
 * Starts it: own session, empty environment.
 * @throws ShimError `volume.share`, `host.cgroup`
 */
export async function launchShareDaemon({ program, source, socket, folder, cgroup }: ShareOptions): Promise<ShareDaemon> {
	if (source.includes(",") || Buffer.byteLength(socket) > MAX_SOCKET_PATH_BYTES)
		throw new ShimError("volume.share", `${source} can't be shared: its path has a comma, or ${socket} is too long`);
	await access(program, constants.X_OK).catch((error: unknown) => {
		throw new ShimError("volume.share", `${program} can't be run: ${messageOf(error)}`, {
			remedy: "install virtiofsd, or set storage.virtiofsd",
		});
	});
	const log = `${socket}.log`;
	const handedOver: number[] = [];
	try {
		const listening = listenUnix(socket, true);
		handedOver.push(listening);
		const words = openSync(log, constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC, 0o600);
		handedOver.push(words);
		const args = [SHARE_OPTION, "-o", optionsFor(source)];
		const descriptors = ["null", words, words, listening] as const;
		const { handle, ended } = await startProgram({ program, args, folder, descriptors, cgroup, oomScore: 0 });
		const { pid, startTime } = handle;
		handle.close();
		return { pid, startTime: startTime.toString(), ended: ended.then(() => lastWords(log)) };
	} catch (error) {
		await removeShareFiles(socket);
		if (error instanceof ShimError) throw error;
		throw new ShimError("volume.share", `starting ${program} for ${source}: ${messageOf(error)}`, { cause: error });
	} finally {
		for (const fd of handedOver) closeFd(fd);
	}
}

async function lastWords(log: string): Promise<string> {
	const text = await readFile(log, "utf8").catch(() => "");
	return text.trim().slice(-LAST_WORDS_CHARACTERS);
}

/** Those of a folder that were started for a source, whether they were written down or not. */
export function findShareDaemons(folder: string, source: string): ShareProcess[] {
	return findProcesses(folder, SHARE_OPTION)
		.filter(({ args }) => args.includes(optionsFor(source)))
		.map(({ pid, startTime }) => ({ pid, startTime: startTime.toString() }));
}

/** Ends those of a source, if they are there still, and removes its files. */
export async function endShareDaemons(processes: readonly ShareProcess[], socket: string): Promise<void> {
	try {
		await Promise.all(processes.map(end));
	} finally {
		await removeShareFiles(socket);
	}
}

async function end({ pid, startTime }: ShareProcess): Promise<void> {
	const handle = ProcessHandle.open(pid, BigInt(startTime));
	try {
		handle?.kill("SIGKILL");
		await handle?.waitExit({ timeoutMs: KILL_WAIT_MS });
	} finally {
		handle?.close();
	}
}

async function removeShareFiles(socket: string): Promise<void> {
	await Promise.all([socket, `${socket}.log`].map((path) => rm(path, { force: true })));
}
