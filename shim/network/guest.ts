/** What the guest agent is told of a network, in the form of its protocol (Kata agent protocol, package `types`). */

/** An address with its prefix length as `mask`. */
export interface GuestAddress {
	/** 0: IPv4, 1: IPv6. */
	readonly family: 0 | 1;
	readonly address: string;
	readonly mask: string;
}

/** An interface: the guest finds it by its hardware address, and gives it the rest. */
export interface GuestInterface {
	readonly device: string;
	readonly name: string;
	readonly IPAddresses: GuestAddress[];
	readonly mtu: number;
	readonly hwAddr: string;
	/** Where a stock agent waits for a card that is plugged into a running guest: its PCI slot. Empty: it is there from the start. */
	readonly devicePath: string;
	/** IFF_NOARP, or nothing. */
	readonly raw_flags: number;
}

/** A route of the main table; an empty `dest` is the default. */
export interface GuestRoute {
	readonly dest: string;
	readonly gateway: string;
	readonly device: string;
	readonly source: string;
	readonly scope: number;
	readonly family: 0 | 1;
	/** RTNH_F_ONLINK, or nothing. */
	readonly flags: number;
	readonly mtu: number;
}

/** A neighbour that is known for ever. */
export interface GuestNeighbour {
	readonly toIPAddress: GuestAddress;
	readonly device: string;
	readonly lladdr: string;
	/** NUD_PERMANENT. */
	readonly state: number;
	readonly flags: number;
}
