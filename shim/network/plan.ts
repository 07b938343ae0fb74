/** From what a namespace holds to what the VM gets of it: everything, but for what the guest's kernel makes by itself. Pure. */

import { isIPv6 } from "node:net";

import { ShimError } from "../base/errors.ts";
import type { Address, Link, Neighbour, Route, Snapshot } from "../host/links.ts";
import type { GuestAddress, GuestInterface, GuestNeighbour, GuestRoute } from "./guest.ts";

/** An interface of the namespace that goes into the VM. */
export interface Endpoint {
	/** The interface's index in its namespace, by which the tap and the VM's device are named. */
	readonly index: number;
	readonly name: string;
	readonly mac: string;
	readonly mtu: number;
}

/** A namespace's network for a VM. */
export interface NetworkPlan {
	readonly endpoints: readonly Endpoint[];
	readonly interfaces: readonly GuestInterface[];
	readonly routes: readonly GuestRoute[];
	readonly neighbours: readonly GuestNeighbour[];
	/** What was left out though it means something, for the log. */
	readonly omitted: readonly string[];
}

/** ARPHRD_* of linux/if_arp.h. */
const ETHERNET = 1;
/** IFF_* of linux/if.h. */
const IFF = { UP: 0x1, LOOPBACK: 0x8, NOARP: 0x80 } as const;
const NO_MAC = "00:00:00:00:00:00";
/** Kinds of Ethernet interfaces whose frames never pass the place where they could be redirected, or are not whole there. */
const UNSUPPORTED_KINDS: ReadonlyMap<string, string> = new Map([
	["tun", "a tap belongs to the program that reads it"],
	["macvtap", "its frames go to a program, past the host's network stack"],
	["ipvtap", "its frames go to a program, past the host's network stack"],
	["netkit", "its frames are handled by programs of the host's kernel"],
	["hsr", "its frames carry a header that only it understands"],
]);

/** IFA_F_* of linux/if_addr.h. */
const IFA_F = { DADFAILED: 0x08, PERMANENT: 0x80 } as const;
const RTN_UNICAST = 1;
const RTPROT = { KERNEL: 2, RA: 9 } as const;
const RTNH_F_ONLINK = 4;
/** RT_TABLE_MAIN of linux/rtnetlink.h. */
const TABLE_MAIN = 254;
const NUD_PERMANENT = 0x80;

const TAP_PREFIX = "snp";
const OUR_TAP = /^snp[1-9][0-9]*$/;

/** The name of the tap that carries an interface's frames. */
export const tapName = (index: number): string => `${TAP_PREFIX}${index}`;

/** The index of the interface whose frames a tap carries. */
export const indexOfTap = (name: string): number => Number(name.slice(TAP_PREFIX.length));

/** True for a tap that `tapName` named. */
export const isOurTap = (link: Pick<Link, "kind" | "name">): boolean => link.kind === "tun" && OUR_TAP.test(link.name);

/**
 * Plans a VM's network. Loopback stays on the host; interfaces that are down and have no address (the kernel's own, of tunnels) and members of a bridge or bond
 * are passed over.
 * @param running the VM runs: an interface that it can't have is left out, since it must not keep the others from following their changes
 * @throws ShimError `network.unsupported` that names the interface and why a VM can't have it
 */
export function planNetwork(snapshot: Snapshot, { running = false }: { readonly running?: boolean } = {}): NetworkPlan {
	const omitted: string[] = [];
	const wanted = snapshot.links.filter((link) => isWanted(link, snapshot.addresses));
	const links = wanted.filter((link) => {
		const refusal = refusalOf(link);
		if (refusal !== undefined && !running) throw new ShimError("network.unsupported", refusal);
		if (refusal !== undefined) omitted.push(refusal);
		return refusal === undefined;
	});
	const names = new Map(links.map((link) => [link.index, link.name]));
	const addresses = snapshot.addresses.filter((address) => names.has(address.link) && isGiven(address, names, omitted));
	return {
		endpoints: links.map(({ index, name, mac, mtu }) => ({ index, name, mac, mtu })),
		interfaces: links.map((link) => interfaceOf(link, addresses)),
		routes: planRoutes(snapshot.routes, addresses, names, omitted),
		neighbours: snapshot.neighbours.flatMap((neighbour) => neighbourOf(neighbour, names)),
		omitted,
	};
}

function isWanted(link: Link, addresses: readonly Address[]): boolean {
	if ((link.flags & IFF.LOOPBACK) !== 0 || link.master !== 0 || isOurTap(link)) return false;
	return (link.flags & IFF.UP) !== 0 || addresses.some((address) => address.link === link.index);
}

/** Why a VM can't have an interface; undefined when it can. */
function refusalOf(link: Link): string | undefined {
	const what = `interface ${link.name} of the pod's network namespace`;
	const kind = link.kind === "" ? "hardware" : link.kind;
	const reason = UNSUPPORTED_KINDS.get(link.kind);
	if (reason !== undefined) return `${what} is of the kind ${kind}, which a VM can't have: ${reason}`;
	const isEthernet = link.hardware === ETHERNET && /^([0-9a-f]{2}:){5}[0-9a-f]{2}$/.test(link.mac) && link.mac !== NO_MAC;
	return isEthernet ? undefined : `${what} (kind ${kind}) is no Ethernet interface: a VM's network cards carry Ethernet frames only`;
}

/** Leaves out what the guest's kernel makes by itself from the hardware address and router advertisements, and what must not be used. */
function isGiven(address: Address, names: ReadonlyMap<number, string>, omitted: string[]): boolean {
	if ((address.flags & IFA_F.DADFAILED) !== 0) {
		omitted.push(`address ${address.address} of ${names.get(address.link)}: somebody else has it (duplicate address detection failed)`);
		return false;
	}
	if (!isIPv6(address.address)) return true;
	return !isLinkLocal(address.address) && (address.flags & IFA_F.PERMANENT) !== 0;
}

const isLinkLocal = (address: string): boolean => /^fe[89ab][0-9a-f]:/.test(address);

const guestAddress = (address: string, mask: string): GuestAddress => ({ family: isIPv6(address) ? 1 : 0, address, mask });

const allBits = (address: string): string => (isIPv6(address) ? "128" : "32");

function interfaceOf(link: Link, addresses: readonly Address[]): GuestInterface {
	const own = addresses.filter((address) => address.link === link.index);
	return {
		device: link.name,
		name: link.name,
		IPAddresses: own.map(({ address, prefix, peer }) => guestAddress(address, peer === address ? String(prefix) : allBits(address))),
		mtu: link.mtu,
		hwAddr: link.mac,
		devicePath: "",
		raw_flags: link.flags & IFF.NOARP,
	};
}

/** Of several routes to one destination the protocol carries one, since it knows no metric: the best. */
function planRoutes(
	routes: readonly Route[],
	addresses: readonly Address[],
	names: ReadonlyMap<number, string>,
	omitted: string[],
): GuestRoute[] {
	const best = new Map<string, Route>();
	const others = new Set(routes.filter(({ table, link }) => table !== TABLE_MAIN && names.has(link)).map(({ table }) => table));
	for (const table of others)
		omitted.push(`routes of table ${table}: the guest agent's protocol carries neither other tables than the main one nor their rules`);
	for (const route of routes.filter(({ table }) => table === TABLE_MAIN)) {
		const text = `route to ${route.destination === "" ? "default" : route.destination}`;
		if (isMadeByGuest(route, addresses)) continue;
		if (route.type !== RTN_UNICAST || !names.has(route.link)) {
			if (route.link === 0) omitted.push(`${text}: it is of a kind that the guest agent's protocol does not carry`);
			continue;
		}
		const key = `${route.v6} ${route.destination}`;
		const known = best.get(key);
		if (known !== undefined) omitted.push(`${text} with the metric ${Math.max(known.metric, route.metric)}: there is a better one`);
		if (known === undefined || route.metric < known.metric) best.set(key, route);
	}
	// What a gateway is reached by comes before the routes through it.
	const chosen = [...best.values()];
	return [...chosen.filter((route) => route.gateway === ""), ...chosen.filter((route) => route.gateway !== "")].map((route) => ({
		dest: route.destination,
		gateway: route.gateway,
		device: names.get(route.link) ?? "",
		source: route.source,
		scope: route.scope,
		family: route.v6 ? 1 : 0,
		flags: route.flags & RTNH_F_ONLINK,
		mtu: route.mtu,
	}));
}

function isMadeByGuest(route: Route, addresses: readonly Address[]): boolean {
	if (route.protocol === RTPROT.RA) return true;
	if (route.protocol !== RTPROT.KERNEL) return false;
	if (route.destination.startsWith("fe80:") || route.destination.startsWith("ff00:")) return true;
	// A prefix that belongs to an address comes with it; that of a point-to-point peer does not.
	return addresses.some((address) => address.link === route.link && covers(route.destination, address));
}

function covers(destination: string, address: Address): boolean {
	if (address.peer !== address.address) return false;
	return networkOf(address.address, address.prefix) === destination;
}

/** The network of an address, `10.1.2.0/24` for 10.1.2.3 with 24 bits, as the kernel's routes write it. */
export function networkOf(address: string, prefix: number): string {
	const v6 = isIPv6(address);
	const bits = v6 ? 128 : 32;
	const width = BigInt(bits);
	const masked = (numberOf(address) >> (width - BigInt(prefix))) << (width - BigInt(prefix));
	return `${v6 ? v6Text(masked) : v4Text(masked)}/${prefix}`;
}

function numberOf(address: string): bigint {
	if (!isIPv6(address)) return address.split(".").reduce((sum, part) => (sum << 8n) | BigInt(part), 0n);
	const [head = "", tail = ""] = address.split("::");
	const groups = (text: string): string[] => (text === "" ? [] : text.split(":").flatMap(v4InV6));
	const [front, back] = [groups(head), groups(tail)];
	const middle = address.includes("::") ? Array.from({ length: 8 - front.length - back.length }, () => "0") : [];
	return [...front, ...middle, ...back].reduce((sum, group) => (sum << 16n) | BigInt(`0x${group}`), 0n);
}

/** `::ffff:1.2.3.4` ends with a dotted part, which stands for two groups. */
function v4InV6(group: string): string[] {
	if (!group.includes(".")) return [group];
	const number = numberOf(group);
	return [(number >> 16n).toString(16), (number & 0xffffn).toString(16)];
}

const v4Text = (number: bigint): string => [24n, 16n, 8n, 0n].map((shift) => (number >> shift) & 0xffn).join(".");

function v6Text(number: bigint): string {
	const groups = Array.from({ length: 8 }, (_, index) => ((number >> BigInt(112 - index * 16)) & 0xffffn).toString(16));
	return new URL(`http://[${groups.join(":")}]/`).hostname.slice(1, -1);
}

function neighbourOf(neighbour: Neighbour, names: ReadonlyMap<number, string>): GuestNeighbour[] {
	const device = names.get(neighbour.link);
	if (device === undefined || (neighbour.state & NUD_PERMANENT) === 0 || neighbour.mac === "") return [];
	const toIPAddress = guestAddress(neighbour.address, allBits(neighbour.address));
	return [{ toIPAddress, device, lladdr: neighbour.mac, state: NUD_PERMANENT, flags: neighbour.flags }];
}
