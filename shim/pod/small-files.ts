/**
 * Single files of the host that a container's specification mounts: hosts, resolv.conf, host name, termination message. The guest gets a
 * copy; what the container writes into an empty file (Kubernetes' termination message) is written back when it has ended.
 */

import { constants } from "node:fs";
import { open } from "node:fs/promises";
import type { FileHandle } from "node:fs/promises";

import type { AgentClient } from "../agent/client.ts";
import { guestFile, hostBindMounts } from "../agent/guest-spec.ts";
import type { GuestSource } from "../agent/guest-spec.ts";
import type { OciMount, OciSpec } from "../agent/oci-spec.ts";
import { errnoOf, messageOf, ShimError } from "../base/errors.ts";

/** A larger file is a volume's business. */
const MAX_FILE_BYTES = 1024 * 1024;
/** Kubernetes shows 4 KiB of a termination message; a container may have written more. */
const MAX_MESSAGE_BYTES = 64 * 1024;
/** Answers of the guest that are waited for together. */
const FILES_AT_ONCE = 8;
const PERMISSION_BITS = 0o7777;
const REGULAR_FILE = 0o100000;
const FOLDER_MODE = 0o700;

/** A plain file to copy. */
interface SmallFile {
	readonly destination: string;
	readonly source: string;
	readonly guestPath: string;
}

function candidates(containerId: string, spec: OciSpec): (SmallFile & { readonly mount: OciMount })[] {
	return hostBindMounts(spec).map((mount, index) => ({
		mount,
		destination: mount.destination,
		source: mount.source ?? "",
		guestPath: guestFile(containerId, index),
	}));
}

/** Opens without waiting for anything, whatever the path is; undefined for what is not there or no plain file. */
async function openPlain(path: string, flags: number): Promise<FileHandle | undefined> {
	let handle: FileHandle;
	try {
		handle = await open(path, flags | constants.O_NONBLOCK | constants.O_NOCTTY);
	} catch (error) {
		const code = errnoOf(error);
		if (code === "ENOENT" || code === "EISDIR" || code === "ENXIO" || code === "ENOTDIR") return undefined;
		throw new ShimError("storage.mount", `the file ${path} can't be opened: ${messageOf(error)}`, { cause: error });
	}
	if ((await handle.stat()).isFile()) return handle;
	await handle.close();
	return undefined;
}

/**
 * Copies the small files of a container into the guest. What is no plain file, or larger than 1 MiB, is left to others.
 * @returns where they lie in the guest, by destination
 */
export async function copySmallFiles(
	containerId: string,
	spec: OciSpec,
	agent: AgentClient,
	signal: AbortSignal,
): Promise<Map<string, GuestSource>> {
	const copied = new Map<string, GuestSource>();
	const wanted = candidates(containerId, spec).filter(({ source }) => source !== "");
	for (let at = 0; at < wanted.length; at += FILES_AT_ONCE) {
		const some = wanted.slice(at, at + FILES_AT_ONCE);
		const outcomes = await Promise.allSettled(some.map((file) => copyFile(file, agent, signal)));
		for (const [index, outcome] of outcomes.entries()) {
			if (outcome.status === "rejected") throw outcome.reason;
			const { destination = "", guestPath = "" } = some[index] ?? {};
			if (outcome.value) copied.set(destination, { path: guestPath });
		}
	}
	return copied;
}

/** @returns whether it was a small file */
async function copyFile({ source, guestPath }: SmallFile, agent: AgentClient, signal: AbortSignal): Promise<boolean> {
	const handle = await openPlain(source, constants.O_RDONLY);
	if (handle === undefined) return false;
	try {
		const stats = await handle.stat();
		if (stats.size > MAX_FILE_BYTES) return false;
		const data = await handle.readFile();
		const file = {
			path: guestPath,
			file_size: data.length,
			file_mode: REGULAR_FILE | (stats.mode & PERMISSION_BITS),
			dir_mode: FOLDER_MODE,
			uid: stats.uid,
			gid: stats.gid,
			offset: 0,
			data,
		};
		await agent.copyFile(file, { signal });
		return true;
	} finally {
		await handle.close();
	}
}

const isWritable = (mount: OciMount): boolean => !(mount.options ?? []).includes("ro");

/** Kubelet's file for a container's termination message (`<root>/pods/<uid>/containers/<name>/<8 hexadecimal digits>`). */
const TERMINATION_MESSAGE = /\/pods\/[^/]+\/containers\/[^/]+\/[0-9a-f]{8}$/u;

/**
 * Writes back what an ended container has put into files that were, and still are, empty on the host.
 * @param reason what is known of its end, for the termination message of one that left none; empty when that is nothing
 * @throws ShimError when the guest can't be asked or the host's file can't be written
 */
export async function returnMessages(containerId: string, spec: OciSpec, agent: AgentClient, reason: () => Promise<string>): Promise<void> {
	for (const { mount, source, guestPath } of candidates(containerId, spec)) {
		if (source === "" || !isWritable(mount)) continue;
		const handle = await openPlain(source, constants.O_WRONLY);
		if (handle === undefined) continue;
		try {
			if ((await handle.stat()).size > 0) continue;
			const data = await agent.readFile(guestPath, MAX_MESSAGE_BYTES);
			if (data.length > 0) await handle.writeFile(data);
			else if (TERMINATION_MESSAGE.test(source)) await handle.writeFile(await reason());
		} finally {
			await handle.close();
		}
	}
}
