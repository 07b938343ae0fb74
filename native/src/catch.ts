/** One listening socket for every TCP port of a network namespace. */

import { addon, checked, MAX_INT, whole } from "./load.ts";

/** What catches connections; both descriptors are the caller's to close. */
export interface Catch {
	/** A listening socket: the port that was asked for is that of the accepted socket's own address. */
	readonly listener: number;
	/** As long as it is open all connections go to the listener. */
	readonly link: number;
}

/**
 * Catches every TCP connection that is made to an address of the namespace (on Linux 5.9 or later, with `bpf_sk_lookup`).
 * @param ns descriptor of the namespace
 * @throws SystemError: EPERM, EINVAL when the kernel can't, or when `ns` is no network namespace
 */
export async function netnsCatch(ns: number): Promise<Catch> {
	const made = await addon().netnsCatch(whole(ns, "ns", 0, MAX_INT));
	const [listener = -1, link = -1] = typeof made === "number" ? [checked(made, "catch ports of namespace", String(ns))] : made;
	return { listener, link };
}
