/**
 * Who gives memory back, and who gets it: pure. Memory runs short in places: the node, the budget of all VMs, control groups with a limit. A place
 * that is short takes memory from the VMs in it, idle ones first, by their balloons; a VM that needs memory gets it whatever the places say.
 */

import type { Exemption, GuestMemory } from "./ports.ts";

const MIB = 1024 * 1024;
/** A place is no longer short when it has this many times what shall be available... */
const ENOUGH = 1.5;
/** ...for this long: pressure that comes and goes moves no memory back and forth. */
export const CALM_MS = 10_000;
/** Percent of time in which tasks wait for memory: short from the first on, calm below the second. */
const STALLED_PERCENT = 10;
const UNSTALLED_PERCENT = 1;
/** Waiting counts only where memory is scarce: a group at its own limit waits too, and no other can help it. */
const SCARCE = 4;
/** A place's reserve is at most this part of it. */
const RESERVE_PART = 8;
/** What a guest keeps beside what it uses: a part of its memory, and not less than this. */
const SLACK_PART = 8;
const MIN_SLACK_BYTES = 32 * MIB;
/** Balloons move in steps not smaller than this. */
export const STEP_BYTES = 8 * MIB;
const NEED_STEP_BYTES = 64 * MIB;

/** Where memory can run short. */
export interface Place {
	readonly totalBytes: number;
	readonly availableBytes: number;
	/** Percent of the last ten seconds in which a task waited for memory; undefined: not known. */
	readonly stalledPercent: number | undefined;
}

/** Whether a place is short, and since when it is no more. */
export interface PlaceState {
	readonly short: boolean;
	/** While short: when it last became calm; undefined: it is not. */
	readonly calmSinceMs: number | undefined;
}

export const AT_EASE: PlaceState = { short: false, calmSinceMs: undefined };

/** A place as it was found. */
export interface Assessment extends PlaceState {
	/** How much more it should have; 0 when it is not short. */
	readonly wantedBytes: number;
	/** It has less than half of what shall be available: busy VMs give as well. */
	readonly severe: boolean;
	/** What VMs may get back without making it short again. */
	readonly spareBytes: number;
}

/** What shall be available in a place. @param reserveBytes what is configured for the node */
export function reserveOf(place: Place, reserveBytes: number): number {
	return Math.min(reserveBytes, Math.floor(place.totalBytes / RESERVE_PART));
}

/** Whether a place is short now. */
export function assess(place: Place, before: PlaceState, reserveBytes: number, nowMs: number): Assessment {
	const reserve = reserveOf(place, reserveBytes);
	const { availableBytes, stalledPercent = 0 } = place;
	const stalled = stalledPercent >= STALLED_PERCENT && availableBytes < SCARCE * reserve;
	const begins = availableBytes < reserve || stalled;
	const calm = availableBytes > ENOUGH * reserve && (stalledPercent < UNSTALLED_PERCENT || availableBytes >= SCARCE * reserve);
	const calmSinceMs = calm ? (before.calmSinceMs ?? nowMs) : undefined;
	const over = calmSinceMs !== undefined && nowMs - calmSinceMs >= CALM_MS;
	const short = before.short ? !over : begins;
	const lacking = Math.max(0, ENOUGH * reserve - availableBytes, stalled ? reserve / 4 : 0);
	return {
		short,
		calmSinceMs: short ? calmSinceMs : undefined,
		wantedBytes: short ? lacking : 0,
		severe: short && availableBytes < reserve / 2,
		spareBytes: short ? 0 : Math.max(0, availableBytes - ENOUGH * reserve),
	};
}

/** A VM as the decision sees it. */
export interface VmView {
	readonly sizeBytes: number;
	/** What its balloon was asked to take, and has. */
	readonly askedBytes: number;
	readonly actualBytes: number;
	/** It is never brought below this. */
	readonly floorBytes: number;
	/** Undefined when it was not asked. */
	readonly guest: GuestMemory | undefined;
	readonly idle: boolean;
	/** It needed memory a short time ago. */
	readonly held: boolean;
	readonly exempt: Exemption | undefined;
	/** Indices of the places that it is in. */
	readonly places: readonly number[];
}

/** What a guest keeps available beside what it uses. */
export function slackOf({ sizeBytes, actualBytes }: Pick<VmView, "sizeBytes" | "actualBytes">): number {
	return Math.max(MIN_SLACK_BYTES, (sizeBytes - actualBytes) / SLACK_PART);
}

/**
 * The balloons as they shall be. A VM that stays as it is is not in the answer.
 * @returns by the VM's index: bytes to ask of its balloon
 */
export function decide(vms: readonly VmView[], places: readonly Assessment[]): Map<number, number> {
	const targets = new Map<number, number>();
	for (const [index, vm] of vms.entries()) {
		const needed = afterNeed(vm);
		if (needed !== undefined) targets.set(index, needed);
	}
	for (const [place, assessment] of places.entries()) {
		if (assessment.wantedBytes > 0) take(vms, place, assessment, targets);
	}
	giveBack(vms, places, targets);
	return targets;
}

/** The smaller balloon of a guest that has too little left; undefined when it has enough. */
function afterNeed(vm: VmView): number | undefined {
	const { guest, askedBytes, actualBytes } = vm;
	if (guest === undefined || askedBytes === 0) return undefined;
	const slack = slackOf(vm);
	if (guest.availableBytes >= slack / 2) return undefined;
	const step = Math.max(NEED_STEP_BYTES, 2 * slack - guest.availableBytes);
	return Math.max(0, whole(Math.min(askedBytes, actualBytes) - step));
}

/** Idle VMs give first, those with most to give before others; busy ones only when the place is nearly empty. */
function take(vms: readonly VmView[], place: number, { wantedBytes, severe }: Assessment, targets: Map<number, number>): void {
	const givers = [...vms.entries()]
		.filter(([index, vm]) => vm.places.includes(place) && !targets.has(index) && mayGive(vm) && (vm.idle || severe))
		.map(([index, vm]) => ({ index, vm, most: mostMore(vm), free: vm.guest?.freeBytes ?? 0 }))
		.filter(({ most }) => most >= STEP_BYTES)
		.sort((a, b) => Number(b.vm.idle) - Number(a.vm.idle) || b.most - b.free - (a.most - a.free));
	let lacking = wantedBytes;
	for (const { index, vm, most, free } of givers) {
		if (lacking <= 0) return;
		// The guest gives its free pages first, which the node has already: only what comes after them counts.
		const more = Math.min(most, lacking + free);
		if (more < STEP_BYTES) continue;
		targets.set(index, whole(vm.actualBytes + more));
		lacking -= Math.max(0, more - free);
	}
}

/** A balloon that is still on its way is let arrive: what its guest says belongs to neither state. */
function mayGive({ exempt, held, guest, askedBytes, actualBytes }: VmView): boolean {
	return exempt === undefined && !held && guest !== undefined && Math.abs(askedBytes - actualBytes) < STEP_BYTES;
}

function mostMore(vm: VmView): number {
	const available = vm.guest?.availableBytes ?? 0;
	return Math.min(vm.sizeBytes - vm.floorBytes - vm.actualBytes, available - slackOf(vm));
}

/** Where no place of a VM is short it gets back what they can spare, the largest balloon first. */
function giveBack(vms: readonly VmView[], places: readonly Assessment[], targets: Map<number, number>): void {
	const spare = places.map(({ spareBytes }) => spareBytes / 2);
	const holders = [...vms.entries()].filter(([index, vm]) => vm.askedBytes > 0 && !targets.has(index));
	for (const [index, vm] of holders.sort(([, a], [, b]) => b.askedBytes - a.askedBytes)) {
		if (vm.places.some((place) => places[place]?.short === true)) continue;
		const back = Math.min(vm.askedBytes, ...vm.places.map((place) => spare[place] ?? 0));
		if (back < Math.min(STEP_BYTES, vm.askedBytes)) continue;
		for (const place of vm.places) spare[place] = (spare[place] ?? 0) - back;
		targets.set(index, Math.max(0, whole(vm.askedBytes - back)));
	}
}

const whole = (bytes: number): number => Math.floor(bytes / MIB) * MIB;
