/** Taps, and the redirection of all frames between a tap and another interface of its namespace (tc(8): ingress, u32 or its like, mirred). */

import { closeFd } from "../../native/src/file.ts";
import { netnsTap } from "../../native/src/netns.ts";
import { attribute, FLAG, type Message, nested, type Netlink, NetlinkError, number32, type Request, text } from "./netlink.ts";

export { MAX_TAP_QUEUES } from "../../native/src/netns.ts";

const RTM = { NEWLINK: 16, DELLINK: 17, NEWQDISC: 36, DELQDISC: 37, GETQDISC: 38, NEWTFILTER: 44, DELTFILTER: 45, GETTFILTER: 46 } as const;
/** Sizes of ifinfomsg and tcmsg. */
const LINK_BYTES = 16;
const TC_BYTES = 20;
const IFF_UP = 0x1;
const IFLA = { MTU: 4, AF_SPEC: 26 } as const;
const AF_INET6 = 10;
const IFLA_INET6_ADDR_GEN_MODE = 8;
const ADDR_GEN_MODE_NONE = 1;
const TCA = { KIND: 1, OPTIONS: 2 } as const;
/** Where an ingress qdisc hangs, and where its filters do (TC_H_INGRESS; TC_H_CLSACT with TC_H_MIN_INGRESS of linux/pkt_sched.h): right for clsact as well. */
const QDISC_PARENT = 0xffff_fff1;
const QDISC_HANDLE = 0xffff_0000;
const FILTER_PARENT = 0xffff_fff2;
/** The preference by which our filters are known; nothing else of a namespace is ever touched. */
const PREFERENCE = 0x534e;
const ETH_P_ALL = 0x0003;
const ACTION_STOLEN = 4;
const MIRRED_EGRESS_REDIRECT = 1;

/**
 * Makes a tap, with one queue for each vCPU. It sends nothing by itself: no IPv6 addresses.
 * @returns a descriptor for each queue, which the caller closes; the tap is gone when all copies are
 * @throws SystemError: EBUSY when there is an interface of that name
 */
export function makeTap(ns: number, name: string, queues: number): Promise<number[]> {
	return netnsTap(ns, name, queues);
}

/** Closes descriptors of a tap that were handed over, or are not needed. */
export function closeTap(fds: readonly number[]): void {
	for (const fd of fds) closeFd(fd);
}

function linkRequest(type: number, index: number, flags: number, ...attributes: readonly Buffer[]): Request {
	const fixed = Buffer.alloc(LINK_BYTES);
	fixed.writeInt32LE(index, 4);
	fixed.writeUInt32LE(flags, 8);
	fixed.writeUInt32LE(flags, 12);
	return { type, flags: 0, body: Buffer.concat([fixed, ...attributes]) };
}

/**
 * Sets a tap's MTU and brings it up.
 * @throws NetlinkError
 */
export async function openTapLink(netlink: Netlink, index: number, mtu: number): Promise<void> {
	const [mode, up] = tapLinkRequests(index, mtu);
	// A kernel without IPv6 has no such mode, and needs none.
	await netlink.change("keeping IPv6 off a tap", mode).catch(unless("EAFNOSUPPORT", "EOPNOTSUPP"));
	await netlink.change("bringing up a tap", up);
}

function tapLinkRequests(index: number, mtu: number): readonly [mode: Request, up: Request] {
	const mode = nested(IFLA.AF_SPEC, nested(AF_INET6, attribute(IFLA_INET6_ADDR_GEN_MODE, Buffer.from([ADDR_GEN_MODE_NONE]))));
	return [linkRequest(RTM.NEWLINK, index, 0, mode), linkRequest(RTM.NEWLINK, index, IFF_UP, number32(IFLA.MTU, mtu))];
}

/**
 * Does at one stroke what `openTapLink` and a `redirect` each way do, for a new tap and an interface that nobody has ingress rules on: the usual case.
 * @returns false when the kernel refused any of it; the longer way then makes all of it good
 */
export async function joinAtOnce(netlink: Netlink, index: number, tap: number, mtu: number): Promise<boolean> {
	const [usual] = CLASSIFIERS;
	if (usual === undefined) return false;
	const ways = [
		[index, tap],
		[tap, index],
	] as const;
	const redirections = ways.flatMap(([from, to]) => [ingressRequest(from), filterRequest(usual, from, to)]);
	try {
		await netlink.change("joining a tap", ...tapLinkRequests(tap, mtu), ...redirections);
		return true;
	} catch (error) {
		if (error instanceof NetlinkError) return false;
		throw error;
	}
}

/** Removes an interface; one that is gone is success. */
export async function removeLink(netlink: Netlink, index: number): Promise<void> {
	await netlink.change("removing an interface", linkRequest(RTM.DELLINK, index, 0)).catch(unless("ENODEV"));
}

/** Names of errors that are as good as success. */
function unless(...codes: readonly string[]): (error: unknown) => void {
	return (error) => {
		if (!(error instanceof NetlinkError && codes.includes(error.code))) throw error;
	};
}

/** `info` is the preference and, in network order, the protocol of a filter (tc_filter's tcm_info). */
function tcRequest(type: number, flags: number, index: number, place: TcPlace, ...attributes: readonly Buffer[]): Request {
	const fixed = Buffer.alloc(TC_BYTES);
	fixed.writeInt32LE(index, 4);
	fixed.writeUInt32LE(place.handle ?? 0, 8);
	fixed.writeUInt32LE(place.parent, 12);
	fixed.writeUInt32LE(place.info ?? 0, 16);
	return { type, flags, body: Buffer.concat([fixed, ...attributes]) };
}

interface TcPlace {
	readonly parent: number;
	readonly handle?: number;
	readonly info?: number;
}

/** ETH_P_ALL in network order. */
const OUR_FILTER = ((PREFERENCE << 16) | (ETH_P_ALL << 8)) >>> 0;

/** The action `mirred egress redirect` (linux/tc_act/tc_mirred.h): tc_gen, then what to do and where. */
function redirectAction(target: number): Buffer {
	const parameters = Buffer.alloc(28);
	parameters.writeInt32LE(ACTION_STOLEN, 8);
	parameters.writeInt32LE(MIRRED_EGRESS_REDIRECT, 20);
	parameters.writeUInt32LE(target, 24);
	const TCA_ACT_KIND = 1;
	const TCA_ACT_OPTIONS = 2;
	const TCA_MIRRED_PARMS = 2;
	return nested(1, text(TCA_ACT_KIND, "mirred"), nested(TCA_ACT_OPTIONS, attribute(TCA_MIRRED_PARMS, parameters)));
}

/** A classifier that takes every frame. */
interface Classifier {
	readonly kind: string;
	readonly options: (action: Buffer) => Buffer;
}

/** In the order in which they are tried: u32 is the oldest, but a kernel may have been built without it. */
const CLASSIFIERS: readonly Classifier[] = [
	{
		kind: "u32",
		options: (action) => {
			// tc_u32_sel: terminal, one key (a tc_u32_key) that compares nothing.
			const selector = Buffer.alloc(16 + 16);
			selector[0] = 1;
			selector[2] = 1;
			const TCA_U32_SEL = 5;
			const TCA_U32_ACT = 7;
			return Buffer.concat([attribute(TCA_U32_SEL, selector), attribute(TCA_U32_ACT, action)]);
		},
	},
	{ kind: "matchall", options: (action) => attribute(2, action) },
	{ kind: "flower", options: (action) => attribute(3, action) },
];

/**
 * Sends every frame that comes in on one interface out of the other: a redirection of an earlier VM is replaced, filters of others stay, behind ours or before.
 * @throws NetlinkError with what the host's kernel lacks
 */
export async function redirect(netlink: Netlink, from: number, to: number): Promise<void> {
	await netlink.change("making an ingress queue", ingressRequest(from)).catch(unless("EEXIST"));
	await removeFilter(netlink, from);
	const refusals: string[] = [];
	for (const classifier of CLASSIFIERS) {
		try {
			await netlink.change(`redirecting with ${classifier.kind}`, filterRequest(classifier, from, to));
			return;
		} catch (error) {
			if (!(error instanceof NetlinkError && error.code === "ENOENT")) throw error;
			refusals.push(error.message);
		}
	}
	throw new NetlinkError("redirecting frames", -2, refusals.join("; "));
}

function ingressRequest(index: number): Request {
	const place = { parent: QDISC_PARENT, handle: QDISC_HANDLE };
	return tcRequest(RTM.NEWQDISC, FLAG.CREATE | FLAG.EXCL, index, place, text(TCA.KIND, "ingress"));
}

function filterRequest({ kind, options }: Classifier, from: number, to: number): Request {
	const place = { parent: FILTER_PARENT, info: OUR_FILTER };
	const body = [text(TCA.KIND, kind), attribute(TCA.OPTIONS, options(redirectAction(to)))];
	return tcRequest(RTM.NEWTFILTER, FLAG.CREATE | FLAG.EXCL, from, place, ...body);
}

/** Removes the redirection of an interface's frames, and the ingress queue when nobody else has filters there. What is gone is success. */
export async function removeRedirect(netlink: Netlink, index: number): Promise<void> {
	await removeFilter(netlink, index);
	const [qdiscs = []] = await netlink.dump("reading queues", tcRequest(RTM.GETQDISC, 0, index, { parent: 0 }));
	const ingress = qdiscs.find((qdisc) => qdisc.word(4) === index && kindOf(qdisc) === "ingress");
	if (ingress === undefined || (await hasFilters(netlink, index))) return;
	const place = { parent: QDISC_PARENT, handle: QDISC_HANDLE };
	await netlink.change("removing an ingress queue", tcRequest(RTM.DELQDISC, 0, index, place)).catch(unless("ENODEV", "ENOENT", "EINVAL"));
}

/** EINVAL: there is no queue that could have filters; ENOENT: no filter of ours. */
async function removeFilter(netlink: Netlink, index: number): Promise<void> {
	const request = tcRequest(RTM.DELTFILTER, 0, index, { parent: FILTER_PARENT, info: OUR_FILTER });
	await netlink.change("removing a redirection", request).catch(unless("ENODEV", "ENOENT", "EINVAL"));
}

async function hasFilters(netlink: Netlink, index: number): Promise<boolean> {
	const [filters = []] = await netlink.dump("reading filters", tcRequest(RTM.GETTFILTER, 0, index, { parent: FILTER_PARENT }));
	return filters.length > 0;
}

const kindOf = (message: Message): string => message.attributes(TC_BYTES).text(TCA.KIND) ?? "";
