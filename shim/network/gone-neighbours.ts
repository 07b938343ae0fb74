/** Neighbours that a guest was told of and that its namespace has no more. Kata's protocol has no call to remove one: it is declared to be unreachable. */

import * as v from "valibot";

import type { GuestNeighbour } from "./guest.ts";
import type { NetworkPlan } from "./plan.ts";

/** linux/neighbour.h: the kernel forgets such an entry, and asks anew when the address is needed. */
const NUD_FAILED = 0x20;

const told = v.array(
	v.object({
		toIPAddress: v.object({ family: v.picklist([0, 1]), address: v.string(), mask: v.string() }),
		device: v.string(),
		lladdr: v.string(),
		state: v.number(),
		flags: v.number(),
	}),
);

const placeOf = ({ device, toIPAddress: { family, address } }: GuestNeighbour): string => `${device} ${family} ${address}`;

/**
 * What the guest has to be told so that it forgets them.
 * @param last the neighbours that it was told of last, as JSON; undefined, or of another form: none
 * @param plan what it is to have; neighbours on interfaces that it lost went with these
 */
export function goneNeighbours(last: string | undefined, plan: Pick<NetworkPlan, "interfaces" | "neighbours">): GuestNeighbour[] {
	const parsed = v.safeParse(told, JSON.parse(last ?? "[]"));
	if (!parsed.success) return [];
	const kept = new Set(plan.neighbours.map(placeOf));
	const devices = new Set(plan.interfaces.map(({ name }) => name));
	return parsed.output
		.filter((one) => !kept.has(placeOf(one)) && devices.has(one.device))
		.map((one) => ({ ...one, lladdr: "", state: NUD_FAILED }));
}
