/**
 * A pod's network namespace as the VM's network is joined to it: for each interface a tap, and a redirection of all frames between the two. Nothing that is
 * made has to be remembered: what is ours is known by its name in the namespace, so that a later process can remove it.
 */

import type { Socket } from "node:net";

import { errnoOf, messageOf, ShimError } from "../base/errors.ts";
import { readLinks, readSnapshot } from "../host/links.ts";
import type { Link } from "../host/links.ts";
import { catchPorts, holdNamespace, watchNamespace } from "../host/namespaces.ts";
import type { HeldNamespace, PortCatcher } from "../host/namespaces.ts";
import { Netlink } from "../host/netlink.ts";
import { closeTap, joinAtOnce, makeTap, openTapLink, redirect, removeLink, removeRedirect } from "../host/taps.ts";
import { hostNetwork } from "./choice.ts";
import { indexOfTap, isOurTap, planNetwork, tapName } from "./plan.ts";
import type { Endpoint, NetworkPlan } from "./plan.ts";

/** A namespace that means the same one as long as it exists, whatever becomes of its path. */
export interface NamespaceAddress {
	readonly path: string;
	/** See `HeldNamespace.id`. */
	readonly id: string;
}

/** An interface that is joined to a tap. The owner of the descriptors, one for each queue, hands them to the VMM and closes them. */
export interface Joined {
	readonly endpoint: Endpoint;
	readonly fds: readonly number[];
}

const IFF_LOOPBACK = 0x8;

/** Runs work with a netlink socket of a namespace that is held open meanwhile, and closes everything. */
function visit<T>(path: string, work: (ns: HeldNamespace, netlink: Netlink) => Promise<T>): Promise<T> {
	return holding(path, async (ns) => {
		const netlink = await Netlink.open(ns.fd);
		try {
			return await work(ns, netlink);
		} finally {
			netlink.close();
		}
	});
}

/** Runs work on a namespace that is held open meanwhile. */
async function holding<T>(path: string, work: (ns: HeldNamespace) => Promise<T>): Promise<T> {
	const ns = hold(path);
	try {
		return await work(ns);
	} catch (error) {
		if (error instanceof ShimError) throw error;
		const text = errnoOf(error) === "EINVAL" ? `${path} is no network namespace` : `the network namespace ${path}: ${messageOf(error)}`;
		throw new ShimError("network.setup", text, { cause: error });
	} finally {
		ns.close();
	}
}

function hold(path: string): HeldNamespace {
	try {
		return holdNamespace(path);
	} catch (error) {
		const why = errnoOf(error) === "ENOENT" ? "does not exist" : `can't be opened: ${messageOf(error)}`;
		throw new ShimError("network.setup", `the pod's network namespace ${path} ${why}`, { cause: error });
	}
}

/**
 * Finds the namespace at a path.
 * @throws ShimError `network.setup` when there is none, `network.unsupported` when it is the host's own
 */
export function findSpace(path: string): NamespaceAddress {
	const ns = hold(path);
	try {
		if (ns.own) throw hostNetwork();
		return { path, id: ns.id };
	} finally {
		ns.close();
	}
}

/** A namespace as a VM's network sees it. */
export interface Space {
	readonly plan: NetworkPlan;
	/** The MTUs of taps, by the indexes of their interfaces, those included that are gone. */
	readonly taps: ReadonlyMap<number, number>;
}

/**
 * Plans a VM's network for what is in a namespace now.
 * @param running see `planNetwork`
 * @throws ShimError `network.unsupported`, `network.setup`
 */
export function readSpace(space: NamespaceAddress, options: { readonly running: boolean }): Promise<Space> {
	return visit(space.path, (ns, netlink) => look(space, ns, netlink, options));
}

async function look(space: NamespaceAddress, ns: HeldNamespace, netlink: Netlink, options: { readonly running: boolean }): Promise<Space> {
	requireSame(space, ns);
	const snapshot = await readSnapshot(netlink);
	const taps = snapshot.links.filter(isOurTap).map((tap) => [indexOfTap(tap.name), tap.mtu] as const);
	return { plan: planNetwork(snapshot, options), taps: new Map(taps) };
}

/** A path may have got another namespace since. */
function requireSame(space: NamespaceAddress, ns: HeldNamespace): void {
	if (ns.id !== space.id) throw new ShimError("network.setup", `${space.path} means another network namespace than when the pod was made`);
}

/**
 * Joins all interfaces of a namespace to taps of as many queues as the VM has processors. When one fails, none is left.
 * @param found called with the plan before anything is made
 * @throws ShimError `network.busy` when another VM has an interface, `network.unsupported`, `network.setup`; what `found` throws
 */
export function joinSpace(space: NamespaceAddress, queues: number, found: (plan: NetworkPlan) => void): Promise<Joined[]> {
	return visit(space.path, async (ns, netlink) => {
		const { plan, taps } = await look(space, ns, netlink, { running: false });
		if (taps.size > 0) throw new ShimError("network.busy", `the network namespace ${space.path} is in another VM`);
		found(plan);
		return await join(space, ns, netlink, plan.endpoints, queues);
	});
}

/** As `joinSpace`, for interfaces that have come. */
export async function joinEndpoints(space: NamespaceAddress, endpoints: readonly Endpoint[], queues: number): Promise<Joined[]> {
	if (endpoints.length === 0) return [];
	return await visit(space.path, (ns, netlink) => {
		requireSame(space, ns);
		return join(space, ns, netlink, endpoints, queues);
	});
}

async function join(
	space: NamespaceAddress,
	ns: HeldNamespace,
	netlink: Netlink,
	endpoints: readonly Endpoint[],
	queues: number,
): Promise<Joined[]> {
	const joined: Joined[] = [];
	try {
		for (const endpoint of endpoints) joined.push({ endpoint, fds: await makeOwnTap(ns, space, endpoint, queues) });
		const links = joined.length === 0 ? [] : await readLinks(netlink);
		for (const { endpoint } of joined) await joinLinks(netlink, endpoint, tapOf(links, endpoint, space));
		return joined;
	} catch (error) {
		// The taps go with their descriptors; the redirections to them do not.
		for (const { fds } of joined) closeTap(fds);
		for (const { endpoint } of joined) await removeRedirect(netlink, endpoint.index);
		throw error;
	}
}

async function makeOwnTap(ns: HeldNamespace, space: NamespaceAddress, endpoint: Endpoint, queues: number): Promise<number[]> {
	const name = tapName(endpoint.index);
	try {
		return await makeTap(ns.fd, name, queues);
	} catch (error) {
		if (errnoOf(error) === "EBUSY") {
			const text = `interface ${endpoint.name} of the network namespace ${space.path} is in another VM: its tap ${name} is there`;
			throw new ShimError("network.busy", text, { cause: error });
		}
		throw new ShimError("network.setup", `making the tap ${name} in ${space.path}: ${messageOf(error)}`, {
			remedy: "the host's kernel needs the tun driver, and /dev/net/tun must be there",
			cause: error,
		});
	}
}

function tapOf(links: readonly Link[], endpoint: Endpoint, space: NamespaceAddress): Link {
	const tap = links.find((link) => isOurTap(link) && link.name === tapName(endpoint.index));
	if (tap === undefined) throw new ShimError("network.setup", `the tap of interface ${endpoint.name} in ${space.path} is gone at once`);
	return tap;
}

async function joinLinks(netlink: Netlink, endpoint: Endpoint, tap: Link): Promise<void> {
	if (await joinAtOnce(netlink, endpoint.index, tap.index, endpoint.mtu)) return;
	await openTapLink(netlink, tap.index, endpoint.mtu);
	try {
		await redirect(netlink, endpoint.index, tap.index);
		await redirect(netlink, tap.index, endpoint.index);
	} catch (error) {
		throw new ShimError("network.setup", `joining interface ${endpoint.name} to the VM: ${messageOf(error)}`, {
			remedy: "the host's kernel needs the ingress queue, one of the classifiers u32, matchall and flower, and the action mirred",
			cause: error,
		});
	}
}

/** Gives taps the MTUs that their interfaces have now. */
export function updateEndpoints(space: NamespaceAddress, endpoints: readonly Endpoint[]): Promise<void> {
	return visit(space.path, async (ns, netlink) => {
		requireSame(space, ns);
		const links = await readLinks(netlink);
		for (const endpoint of endpoints) {
			const tap = links.find((link) => isOurTap(link) && link.name === tapName(endpoint.index));
			if (tap !== undefined && tap.mtu !== endpoint.mtu) await openTapLink(netlink, tap.index, endpoint.mtu);
		}
	});
}

/** Takes interfaces out of the VM: their taps and redirections go. What is gone is success. */
export function partEndpoints(space: NamespaceAddress, indexes: readonly number[]): Promise<void> {
	return visit(space.path, async (ns, netlink) => {
		requireSame(space, ns);
		const names = new Set(indexes.map(tapName));
		const links = await readLinks(netlink);
		for (const link of links) if (isOurTap(link) && names.has(link.name)) await removeLink(netlink, link.index);
		for (const index of indexes) await removeRedirect(netlink, index);
	});
}

/**
 * Removes everything that was ever made in a namespace for a VM, so that it is as it was before. A namespace that is gone, or whose path means
 * another one now, is success.
 * @throws ShimError `network.setup`
 */
export async function clearSpace(space: NamespaceAddress): Promise<void> {
	try {
		if (findSpace(space.path).id !== space.id) return;
	} catch {
		return;
	}
	await visit(space.path, async (ns, netlink) => {
		if (ns.id !== space.id) return;
		const links = await readLinks(netlink);
		for (const link of links) if (isOurTap(link)) await removeLink(netlink, link.index);
		for (const link of links) if (!isOurTap(link) && (link.flags & IFF_LOOPBACK) === 0) await removeRedirect(netlink, link.index);
	});
}

/**
 * Calls back when something in a namespace has changed. The watch holds the namespace until it is ended.
 * @returns how to end it
 * @throws ShimError `network.setup`
 */
export function watchSpace(space: NamespaceAddress, onChange: () => void): Promise<() => void> {
	return holding(space.path, (ns) => {
		requireSame(space, ns);
		return watchNamespace(ns.fd, onChange);
	});
}

/** Connections to a pod's ports at a time. */
const MAX_CONNECTIONS = 256;

/**
 * Hands every TCP connection that is made within a namespace (to localhost, or to the pod's own address) to `connect`, which reaches the same port in the
 * guest; a port that it does not reach refuses by a reset.
 * @throws ShimError `network.setup` when the host's kernel can't
 */
export function forwardPorts(space: NamespaceAddress, connect: (port: number) => Promise<Socket>): Promise<PortCatcher> {
	return holding(space.path, (ns) => {
		requireSame(space, ns);
		return catchPorts(ns.fd, MAX_CONNECTIONS, (socket, port) => {
			socket.on("error", () => undefined);
			connect(port).then(
				(target) => pipeBoth(socket, target),
				() => socket.resetAndDestroy(),
			);
		});
	});
}

/** Moves bytes both ways; either end may finish its half first, and a failure ends both. */
function pipeBoth(one: Socket, other: Socket): void {
	const ends = [
		[one, other],
		[other, one],
	] as const;
	for (const [from, to] of ends) {
		from.on("error", () => to.destroy());
		from.on("close", () => to.destroySoon());
		from.pipe(to);
	}
}
