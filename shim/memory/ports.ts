/** What the memory room needs of others, as types: a VM whose memory can change, and whatever else holds memory for later. */

/** A change of a VM; what is absent stays as it is. One request to the VMM. */
export interface VmChange {
	readonly vcpus?: number;
	readonly ramBytes?: number;
	readonly balloonBytes?: number;
}

/** What a guest says of its memory. It is not trusted: a guest that lies keeps too much, or has too little. */
export interface GuestMemory {
	readonly freeBytes: number;
	/** What it could use without swapping: free pages, and caches that it can drop. */
	readonly availableBytes: number;
}

/** A VM's memory, as its VMM knows it. */
export interface VmState {
	/** What it was given, its balloon included. */
	readonly sizeBytes: number;
	/** What its balloon was asked to take; undefined when it has none. */
	readonly askedBytes: number | undefined;
	/** What its balloon has taken. */
	readonly actualBytes: number;
}

/** How a VM is asked and changed. */
export interface VmPort {
	/** @throws when the VMM refuses, or is gone */
	change(change: VmChange): Promise<void>;
	/** @throws ShimError `call.unimplemented` when its agent does not tell */
	guest(timeoutMs: number): Promise<GuestMemory>;
	/** What the VMM knows of it. */
	state(timeoutMs: number): Promise<VmState>;
}

/** A VM that waits for a pod: its VMM's process, and when that began (see `startTimeOf`). */
export interface SpareVm {
	readonly pid: number;
	readonly startTime: bigint;
}

/** Something that holds memory for later and can do without: VMs that wait for a pod. */
export interface Spare {
	/** Whether there are any, or will be. */
	readonly kept: boolean;
	/** Those that wait, and those that are being ended and may still have their memory. The same VM is the same object each time. */
	readonly waiting: readonly SpareVm[];
	readonly ending: readonly SpareVm[];
	/** Gives some of those that wait up, which end meanwhile, and makes none for a while. @returns how many */
	shrink(count: number): number;
	/** How much memory a further one may have without making any place short. */
	allow(bytes: number): void;
	/** @param changed called whenever `kept` may have changed */
	follow(changed: () => void): void;
}

/** Why a VM is left alone for good. */
export type Exemption =
	/** Its memory is encrypted: what a balloon takes is not given back to the node. */
	| "confidential"
	/** It has no balloon: memory.reclaim is not "balloon", or an older snpd started it. */
	| "no balloon"
	/** Its agent does not tell of its memory. */
	| "agent";
