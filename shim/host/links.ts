/** What a network namespace holds, read by rtnetlink(7): links, addresses, routes, neighbours. */

import { isIPv6 } from "node:net";

import type { Attributes, Message, Netlink, Request } from "./netlink.ts";

/** An interface. */
export interface Link {
	readonly index: number;
	readonly name: string;
	/** The driver's kind (`veth`, `macvlan`, ...); empty for hardware and loopback. */
	readonly kind: string;
	/** ARPHRD_* of linux/if_arp.h: 1 for Ethernet, 772 for loopback. */
	readonly hardware: number;
	/** IFF_* of linux/if.h. */
	readonly flags: number;
	readonly mtu: number;
	/** Six bytes between colons; another form for what is no Ethernet. */
	readonly mac: string;
	/** The index of the bridge or bond that it is part of; 0: none. */
	readonly master: number;
}

/** An address of an interface. */
export interface Address {
	readonly link: number;
	readonly address: string;
	readonly prefix: number;
	/** The other end of a point-to-point link; `address` itself on all others. */
	readonly peer: string;
	/** IFA_F_* of linux/if_addr.h. */
	readonly flags: number;
	/** RT_SCOPE_* of linux/rtnetlink.h: 0 global, 253 link. */
	readonly scope: number;
}

/** A route of the main table. */
export interface Route {
	/** `address/prefix`; empty for a default route. */
	readonly destination: string;
	readonly v6: boolean;
	/** Empty: on the link itself. */
	readonly gateway: string;
	/** The preferred source address; empty: none. */
	readonly source: string;
	/** The interface; 0 when the route has none, or several. */
	readonly link: number;
	readonly scope: number;
	/** RTN_* of linux/rtnetlink.h: 1 for unicast. */
	readonly type: number;
	/** RTPROT_*: 2 for the kernel's own, 9 for router advertisements. */
	readonly protocol: number;
	/** RTNH_F_*. */
	readonly flags: number;
	readonly metric: number;
	/** 0: the interface's. */
	readonly mtu: number;
	/** Of routes: 254 for the main one. */
	readonly table: number;
}

/** A neighbour's hardware address. */
export interface Neighbour {
	readonly link: number;
	readonly address: string;
	readonly mac: string;
	/** NUD_* of linux/neighbour.h. */
	readonly state: number;
	/** NTF_*. */
	readonly flags: number;
}

/** All of it. */
export interface Snapshot {
	readonly links: readonly Link[];
	readonly addresses: readonly Address[];
	readonly routes: readonly Route[];
	readonly neighbours: readonly Neighbour[];
}

const RTM = { GETLINK: 18, GETADDR: 22, GETROUTE: 26, GETNEIGH: 30 } as const;
/** Sizes of ifinfomsg, ifaddrmsg, rtmsg, ndmsg. */
const BYTES = { link: 16, address: 8, route: 12, neighbour: 12 } as const;
const IFLA = { ADDRESS: 1, IFNAME: 3, MTU: 4, MASTER: 10, LINKINFO: 18 } as const;
const IFLA_INFO_KIND = 1;
const IFA = { ADDRESS: 1, LOCAL: 2, FLAGS: 8 } as const;
const RTA = { DST: 1, OIF: 4, GATEWAY: 5, PRIORITY: 6, PREFSRC: 7, METRICS: 8, TABLE: 15 } as const;
const RTAX_MTU = 2;
const NDA = { DST: 1, LLADDR: 2 } as const;
const AF_INET = 2;
const AF_INET6 = 10;
/** Addresses of the node itself: the kernel makes its routes. */
const TABLE_LOCAL = 255;
/** A route that the kernel made for one packet. */
const RTM_F_CLONED = 0x200;

const dumpOf = (type: number, bodyBytes: number): Request => ({ type, flags: 0, body: Buffer.alloc(bodyBytes) });

/** Reads everything at one go; each list is whole, though not all of the same moment. */
export async function readSnapshot(netlink: Netlink): Promise<Snapshot> {
	const [links = [], addresses = [], routes = [], neighbours = []] = await netlink.dump(
		"reading interfaces, addresses and routes",
		dumpOf(RTM.GETLINK, BYTES.link),
		dumpOf(RTM.GETADDR, BYTES.address),
		dumpOf(RTM.GETROUTE, BYTES.route),
		dumpOf(RTM.GETNEIGH, BYTES.neighbour),
	);
	return {
		links: links.map(linkOf),
		addresses: addresses.filter(isIp).map(addressOf),
		routes: routes.filter((route) => isIp(route) && tableOf(route) !== TABLE_LOCAL && (route.word(8) & RTM_F_CLONED) === 0).map(routeOf),
		neighbours: neighbours.filter(isIp).map(neighbourOf),
	};
}

/** Reads the links alone. */
export async function readLinks(netlink: Netlink): Promise<Link[]> {
	const [links = []] = await netlink.dump("reading interfaces", dumpOf(RTM.GETLINK, BYTES.link));
	return links.map(linkOf);
}

const isIp = (message: Message): boolean => message.byte(0) === AF_INET || message.byte(0) === AF_INET6;

function linkOf(message: Message): Link {
	const attributes = message.attributes(BYTES.link);
	return {
		index: message.word(4),
		name: attributes.text(IFLA.IFNAME) ?? "",
		kind: attributes.nested(IFLA.LINKINFO).text(IFLA_INFO_KIND) ?? "",
		hardware: message.half(2),
		flags: message.word(8),
		mtu: attributes.number(IFLA.MTU) ?? 0,
		mac: macText(attributes.bytes(IFLA.ADDRESS)),
		master: attributes.number(IFLA.MASTER) ?? 0,
	};
}

function addressOf(message: Message): Address {
	const attributes = message.attributes(BYTES.address);
	const peer = ipText(attributes.bytes(IFA.ADDRESS));
	const local = ipText(attributes.bytes(IFA.LOCAL));
	return {
		link: message.word(4),
		address: local === "" ? peer : local,
		prefix: message.byte(1),
		peer,
		flags: attributes.number(IFA.FLAGS) ?? message.byte(2),
		scope: message.byte(3),
	};
}

function tableOf(message: Message): number {
	return message.attributes(BYTES.route).number(RTA.TABLE) ?? message.byte(4);
}

function routeOf(message: Message): Route {
	const attributes: Attributes = message.attributes(BYTES.route);
	const destination = ipText(attributes.bytes(RTA.DST));
	return {
		destination: destination === "" ? "" : `${destination}/${message.byte(1)}`,
		v6: message.byte(0) === AF_INET6,
		gateway: ipText(attributes.bytes(RTA.GATEWAY)),
		source: ipText(attributes.bytes(RTA.PREFSRC)),
		link: attributes.number(RTA.OIF) ?? 0,
		scope: message.byte(6),
		type: message.byte(7),
		protocol: message.byte(5),
		flags: message.word(8) & 0xff,
		metric: attributes.number(RTA.PRIORITY) ?? 0,
		mtu: attributes.nested(RTA.METRICS).number(RTAX_MTU) ?? 0,
		table: tableOf(message),
	};
}

function neighbourOf(message: Message): Neighbour {
	const attributes = message.attributes(BYTES.neighbour);
	return {
		link: message.word(4),
		address: ipText(attributes.bytes(NDA.DST)),
		mac: macText(attributes.bytes(NDA.LLADDR)),
		state: message.half(8),
		flags: message.byte(10),
	};
}

const macText = (bytes: Buffer | undefined): string => [...(bytes ?? [])].map((byte) => byte.toString(16).padStart(2, "0")).join(":");

/** The text of four or sixteen bytes, IPv6 in its short form (RFC 5952); empty for anything else. */
export function ipText(bytes: Buffer | undefined): string {
	if (bytes?.byteLength === 4) return bytes.join(".");
	if (bytes?.byteLength !== 16) return "";
	const groups = Array.from({ length: 8 }, (_, index) => bytes.readUInt16BE(index * 2).toString(16)).join(":");
	// The URL standard writes IPv6 hosts as RFC 5952 does.
	const short = new URL(`http://[${groups}]/`).hostname.slice(1, -1);
	return isIPv6(short) ? short : groups;
}
