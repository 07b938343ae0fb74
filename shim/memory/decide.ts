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
	takeAll(vms, places, targets);
	giveBack(vms, places, targets);
	return targets;
}

/** The smaller balloon of a guest that has too little left; undefined when it has enough. */
export function afterNeed(vm: VmView): number | undefined {
	const { guest, askedBytes, actualBytes } = vm;
	if (guest === undefined || askedBytes === 0) return undefined;
	const slack = slackOf(vm);
	if (guest.availableBytes >= slack / 2) return undefined;
	const step = Math.max(NEED_STEP_BYTES, 2 * slack - guest.availableBytes);
	return Math.max(0, whole(Math.min(askedBytes, actualBytes) - step));
}

/** A VM that may give. */
interface Giver {
	readonly index: number;
	readonly vm: VmView;
	/** How far its balloon may grow in all, and its free pages, which the node has already: only what comes after them counts. */
	readonly mostBytes: number;
	readonly freeBytes: number;
	/** How far it grows by what was decided so far. */
	moreBytes: number;
}

/** What the node gains when a balloon grows by so much: the guest gives its free pages first. */
const gain = (moreBytes: number, freeBytes: number): number => Math.max(0, moreBytes - freeBytes);

/**
 * Places take one after another what they lack, each less what those before it have taken from VMs that are in both. The smallest goes first: what its few
 * VMs give counts in the larger ones around it as well.
 */
function takeAll(vms: readonly VmView[], places: readonly Assessment[], targets: Map<number, number>): void {
	const givers = [...vms.entries()]
		.filter(([index, vm]) => !targets.has(index) && mayGive(vm))
		.map(([index, vm]): Giver => ({ index, vm, mostBytes: mostMore(vm), freeBytes: vm.guest?.freeBytes ?? 0, moreBytes: 0 }))
		.filter(({ mostBytes }) => mostBytes >= STEP_BYTES);
	const members = (place: number): number => vms.filter((vm) => vm.places.includes(place)).length;
	const short = [...places.entries()].filter(([, { wantedBytes }]) => wantedBytes > 0).map(([place]) => ({ place, count: members(place) }));
	for (const { place } of short.sort((a, b) => a.count - b.count || b.place - a.place)) {
		const assessment = places[place];
		if (assessment !== undefined) take(givers, assessment, place, comingTo(place, vms));
	}
	for (const { index, vm, moreBytes } of givers) if (moreBytes > 0) targets.set(index, whole(vm.actualBytes + moreBytes));
}

/** What balloons that are still on their way will bring. */
function comingTo(place: number, vms: readonly VmView[]): number {
	return vms.reduce(
		(sum, { places, guest, askedBytes, actualBytes }) =>
			sum + (places.includes(place) ? gain(askedBytes - actualBytes, guest?.freeBytes ?? 0) : 0),
		0,
	);
}

/** Idle VMs give first, those with most to give before others; busy ones only when the place is nearly empty. One that gave a part may give more. */
function take(all: readonly Giver[], { wantedBytes, severe }: Assessment, place: number, comingBytes: number): void {
	const here = all.filter(({ vm }) => vm.places.includes(place));
	const lasting = here.reduce((sum, { moreBytes, freeBytes }) => sum - gain(moreBytes, freeBytes), wantedBytes - comingBytes);
	const givers = here
		.filter(({ vm }) => vm.idle || severe)
		.sort((a, b) => Number(b.vm.idle) - Number(a.vm.idle) || b.mostBytes - b.freeBytes - (a.mostBytes - a.freeBytes));
	let lacking = lasting;
	for (const giver of givers) {
		if (lacking <= 0) return;
		const { freeBytes, mostBytes, moreBytes } = giver;
		const more = Math.min(mostBytes, Math.max(moreBytes, freeBytes) + lacking);
		if (more - moreBytes < STEP_BYTES) continue;
		giver.moreBytes = more;
		lacking -= gain(more, freeBytes) - gain(moreBytes, freeBytes);
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
