/** Network namespaces of the host, by path: which one a path means, and visits to it. */

import { closeSync, constants, fstatSync, openSync, statSync } from "node:fs";

import { createServer } from "node:net";
import type { Socket } from "node:net";

import { netnsCatch } from "../../native/src/catch.ts";
import { netnsNetlink } from "../../native/src/netns.ts";
import { receive } from "../../native/src/receive.ts";
import { closeFd } from "../../native/src/file.ts";

/** The namespace of this process. */
const OWN = "/proc/self/ns/net";
/** Announcements of links, neighbours, addresses and routes of both families (RTMGRP_* of linux/rtnetlink.h). */
const GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400;

/** A network namespace that is held open. It exists at least as long as it is. */
export interface HeldNamespace {
	readonly fd: number;
	/** Tells namespaces apart while they exist: device and inode. */
	readonly id: string;
	/** True for the namespace of this process. */
	readonly own: boolean;
	close(): void;
}

const identity = (stats: { readonly dev: bigint; readonly ino: bigint }): string => `${stats.dev}:${stats.ino}`;

/**
 * Opens the namespace at a path: a bind mount of one below /run/netns, or a file below /proc/<pid>/ns.
 * @throws the operating system's error: ENOENT, EACCES...
 */
export function holdNamespace(path: string): HeldNamespace {
	const fd = openSync(path, constants.O_RDONLY);
	try {
		const id = identity(fstatSync(fd, { bigint: true }));
		return { fd, id, own: id === identity(statSync(OWN, { bigint: true })), close: () => closeSync(fd) };
	} catch (error) {
		closeSync(fd);
		throw error;
	}
}

/**
 * Calls back when a link, a neighbour, an address or a route of the namespace changes, or when such news was lost: what has changed must be read. Does not keep the
 * program alive.
 * @returns how to end it
 * @throws SystemError
 */
export async function watchNamespace(ns: number, onChange: () => void): Promise<() => void> {
	const fd = await netnsNetlink(ns, GROUPS);
	try {
		const stop = receive(fd, onChange);
		return stop;
	} finally {
		// The receiver has its own copy.
		closeFd(fd);
	}
}

/** A server of every TCP port of a namespace, and how to end it: connections that it has taken go on. */
export interface PortCatcher {
	readonly close: () => void;
}

/**
 * Takes every TCP connection that is made within a namespace to one of its own addresses. Does not keep the program alive.
 * @param onConnection gets the connection, paused, with the port that was asked for; either end may be ended first
 * @param most connections at a time; more are closed at once
 * @throws SystemError when the kernel has no such means (Linux 5.9 or later has)
 */
export async function catchPorts(ns: number, most: number, onConnection: (socket: Socket, port: number) => void): Promise<PortCatcher> {
	const { listener, link } = await netnsCatch(ns);
	const server = createServer({ pauseOnConnect: true, allowHalfOpen: true }, (socket) => onConnection(socket, socket.localPort ?? 0));
	server.maxConnections = most;
	server.unref();
	try {
		await new Promise<void>((resolve, reject) => server.once("error", reject).listen({ fd: listener }, resolve));
	} catch (error) {
		closeFd(link);
		throw error;
	}
	return {
		close: () => {
			closeFd(link);
			server.close();
		},
	};
}
