/** Sockets and taps inside of a network namespace, and messages to the kernel's routing tables (rtnetlink(7)), off the main thread. */

import { addon, checked, MAX_INT, plain, SystemError, whole } from "./load.ts";
import type { ExchangeResult } from "./load.ts";

export type { ExchangeResult } from "./load.ts";

/** The longest name of an interface in bytes (IFNAMSIZ of linux/if.h, less the final NUL). */
const MAX_NAME_BYTES = 15;
/** The most queues of a tap (MAX_TAP_QUEUES of the kernel's tun driver). */
export const MAX_TAP_QUEUES = 256;
/** nlmsghdr. */
const HEADER_BYTES = 16;
const MAX_MESSAGES = 1024;
const MAX_GROUPS = 0xffff_ffff;

/**
 * Opens a netlink socket in a namespace.
 * @param ns descriptor of the namespace
 * @param groups announcements to hear (RTMGRP_* of linux/rtnetlink.h, added up); 0: none, for requests
 * @returns the descriptor: the caller closes it
 * @throws SystemError: EINVAL when `ns` is no network namespace, EPERM...
 */
export async function netnsNetlink(ns: number, groups: number): Promise<number> {
	const made = await addon().netnsNetlink(whole(ns, "ns", 0, MAX_INT), whole(groups, "groups", 0, MAX_GROUPS));
	return descriptors(made, "netlink in namespace", String(ns))[0] ?? -1;
}

/**
 * Makes a tap with a header of virtio-net on each frame. It is gone when the last of its descriptors is closed, by whomever.
 * @param name at most 15 bytes; an interface of that name must not be there
 * @returns one descriptor for each queue: the caller closes them
 * @throws SystemError: EBUSY when the name is taken, EINVAL when `ns` is no network namespace, ENOENT without /dev/net/tun...
 */
export async function netnsTap(ns: number, name: string, queues: number): Promise<number[]> {
	whole(Buffer.byteLength(plain(name, "name")), "the length of an interface's name in bytes", 1, MAX_NAME_BYTES);
	const made = await addon().netnsTap(whole(ns, "ns", 0, MAX_INT), name, whole(queues, "queues", 1, MAX_TAP_QUEUES));
	return descriptors(made, "make tap", name);
}

/**
 * Sends messages to the kernel one after another, and collects the answer of each; ends at the first that is refused.
 * A message asks for an acknowledgement (NLM_F_ACK) or for a list (NLM_F_DUMP), or the exchange would wait in vain (5 s).
 * @returns what came; an error in it is the kernel's answer, not this function's: EINTR means that a table changed while it was read
 * @throws SystemError when there is no thread or descriptor to be had; RangeError when a message is not one
 */
export async function netlinkExchange(fd: number, messages: readonly Uint8Array[]): Promise<ExchangeResult> {
	whole(messages.length, "the number of messages", 1, MAX_MESSAGES);
	for (const message of messages) {
		if (!(message instanceof Uint8Array) || message.byteLength < HEADER_BYTES) throw new RangeError("a message must have a header");
		const length = new DataView(message.buffer, message.byteOffset, message.byteLength).getUint32(0, true);
		whole(length, "a message's length", message.byteLength, message.byteLength);
	}
	const result = await addon().netlinkExchange(whole(fd, "fd", 0, MAX_INT), messages);
	if (typeof result === "number") throw new SystemError(result, "netlink exchange", String(fd));
	return result;
}

function descriptors(made: readonly number[] | number, syscall: string, subject: string): number[] {
	if (typeof made === "number") checked(made, syscall, subject);
	return typeof made === "number" ? [] : [...made];
}
