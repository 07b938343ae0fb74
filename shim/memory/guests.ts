/** Asks guests for their memory, many at once but not all: the answers are the decision's view of their VMs. */

import { explain, ShimError } from "../base/errors.ts";
import type { VmView } from "./decide.ts";
import { STEP_BYTES } from "./decide.ts";
import type { VmMemory } from "./vm-memory.ts";

/** How long a guest may take: one that has no memory left takes long. */
const ANSWER_MS = 2_000;
/** Guests asked in one look; those that were not asked come first in the next. */
const MOST_ASKED = 64;
/** A balloon that has not come to what was asked by then never will: the guest needs the rest. */
const ARRIVAL_MS = 10_000;

/** A VM, and how the decision sees it. */
export interface AskedVm {
	readonly vm: VmMemory;
	readonly view: VmView;
}

/**
 * Asks these VMs. Those that don't answer while their balloon has something get it back.
 * @param placesOf the indices of the places that a VM is in
 * @param look the number of this look
 */
export async function askGuests(
	vms: readonly VmMemory[],
	placesOf: (vm: VmMemory) => readonly number[],
	{ look, nowMs }: { readonly look: number; readonly nowMs: number },
): Promise<AskedVm[]> {
	const chosen =
		vms.length > MOST_ASKED ? Array.from({ length: MOST_ASKED }, (_, index) => vms[(look * MOST_ASKED + index) % vms.length]) : vms;
	const views = await Promise.all(chosen.flatMap((vm) => (vm === undefined ? [] : [ask(vm, placesOf(vm), nowMs)])));
	return views.filter((view) => view !== undefined);
}

async function ask(vm: VmMemory, places: readonly number[], nowMs: number): Promise<AskedVm | undefined> {
	const { port, floorBytes, log } = vm.options;
	try {
		const [guest, { actualBytes }] = await Promise.all([port.guest(ANSWER_MS), port.state(ANSWER_MS)]);
		await settle(vm, actualBytes, nowMs);
		const { sizeBytes, balloonBytes: askedBytes, idle, exempt } = vm;
		return { vm, view: { sizeBytes, askedBytes, actualBytes, floorBytes, guest, idle, held: vm.held(nowMs), exempt, places } };
	} catch (error) {
		if (error instanceof ShimError && (error.reason === "call.unimplemented" || error.reason === "policy.denied")) {
			log.info("the guest does not tell of its memory: it is left alone", { reason: explain(error) });
			await vm.need();
			vm.exempt = "agent";
			return undefined;
		}
		log.debug("the guest does not say how much memory it needs", { reason: explain(error) });
		// Not asked again for a while: it would hold up the look of all others each time.
		await vm.need();
		return undefined;
	}
}

/** A guest that can't give all that was asked is asked for what it gave: else its kernel goes on looking for more. */
async function settle(vm: VmMemory, actualBytes: number, nowMs: number): Promise<void> {
	if (vm.balloonBytes - actualBytes < STEP_BYTES) {
		vm.underwaySinceMs = undefined;
		return;
	}
	vm.underwaySinceMs ??= nowMs;
	if (nowMs - vm.underwaySinceMs < ARRIVAL_MS) return;
	vm.underwaySinceMs = undefined;
	vm.hold();
	await vm.setBalloon(actualBytes);
}
