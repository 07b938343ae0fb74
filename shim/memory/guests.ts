/** Asks guests for their memory. Each is on its own: one that does not answer holds up no other, and is asked less and less often. */

import { explain, ShimError } from "../base/errors.ts";
import type { VmView } from "./decide.ts";
import { STEP_BYTES } from "./decide.ts";
import type { GuestMemory, VmState } from "./ports.ts";
import type { VmMemory } from "./vm-memory.ts";

/** How long a guest may take: one that has no memory left takes long. */
export const ANSWER_MS = 2_000;
/** VMs without a balloon that are asked in one look, and all that are asked at the same time. */
export const MOST_CANDIDATES = 64;
const MOST_AT_ONCE = 64;
/** A balloon that has not come to what was asked by then never will: the guest needs the rest. */
const ARRIVAL_MS = 10_000;

/**
 * Whom to ask in a look: first those of whom a balloon holds something, or may, all of them and always; then those that could give something, whoever was
 * asked longest ago before others.
 * @param mayGive whether something is wanted of a VM
 */
export function chooseGuests(vms: readonly VmMemory[], mayGive: (vm: VmMemory) => boolean): VmMemory[] {
	const free = vms.filter((vm) => vm.exempt === undefined && !vm.resting && !vm.asking && !vm.changing);
	const holds = (vm: VmMemory): boolean => !vm.known || vm.balloonBytes > 0;
	const candidates = free.filter((vm) => !holds(vm) && !vm.held && mayGive(vm)).sort((one, other) => one.turn - other.turn);
	return [...free.filter(holds), ...candidates.slice(0, MOST_CANDIDATES)];
}

/**
 * Asks these VMs, not too many at once.
 * @param nowMs when the look began
 * @param answered called with each answer as it comes
 * @returns settles when the last one has answered or its time is over; never rejects
 */
export async function askGuests(
	vms: readonly VmMemory[],
	{ nextTurn, nowMs }: { readonly nextTurn: () => number; readonly nowMs: number },
	answered: (vm: VmMemory, view: Omit<VmView, "places">) => void,
): Promise<void> {
	const rest = vms.values();
	for (const vm of vms) {
		vm.asking = true;
		vm.turn = nextTurn();
	}
	const turn = async (): Promise<void> => {
		// All turns take from the same iterator.
		for (const vm of rest) {
			const view = await ask(vm, nowMs);
			vm.asking = false;
			if (view !== undefined) answered(vm, view);
		}
	};
	await Promise.all(Array.from({ length: Math.min(MOST_AT_ONCE, vms.length) }, turn));
}

/** Never rejects. */
async function ask(vm: VmMemory, nowMs: number): Promise<Omit<VmView, "places"> | undefined> {
	const { port, floorBytes, log } = vm.options;
	const { revision } = vm;
	const [guest, state] = await Promise.allSettled([port.guest(ANSWER_MS), port.state(ANSWER_MS)]);
	if (state.status === "fulfilled") vm.accept(state.value, revision);
	if (guest.status === "fulfilled" && state.status === "fulfilled") {
		vm.answered();
		if (!vm.known || vm.exempt !== undefined) return undefined;
		if (vm.owed) {
			void vm.need();
			return undefined;
		}
		settle(vm, state.value, nowMs);
		return viewOf(vm, floorBytes, guest.value, state.value);
	}
	const error: unknown = guest.status === "rejected" ? guest.reason : state.status === "rejected" ? state.reason : undefined;
	if (error instanceof ShimError && (error.reason === "call.unimplemented" || error.reason === "policy.denied")) {
		log.info("the guest does not tell of its memory: it is left alone", { reason: explain(error) });
		void vm.leaveAlone("agent");
		return undefined;
	}
	log.debug("the guest does not say how much memory it needs", { reason: explain(error) });
	vm.failed();
	void vm.need();
	return undefined;
}

function viewOf(vm: VmMemory, floorBytes: number, guest: GuestMemory, { actualBytes }: VmState): Omit<VmView, "places"> {
	const { sizeBytes, balloonBytes: askedBytes, idle, held, exempt } = vm;
	return { sizeBytes, askedBytes, actualBytes, floorBytes, guest, idle, held, exempt };
}

/** A guest that can't give all that was asked is asked for what it gave: else its kernel goes on looking for more. */
function settle(vm: VmMemory, { actualBytes }: VmState, nowMs: number): void {
	if (vm.balloonBytes - actualBytes < STEP_BYTES) {
		vm.underwaySinceMs = undefined;
		return;
	}
	vm.underwaySinceMs ??= nowMs;
	if (nowMs - vm.underwaySinceMs < ARRIVAL_MS) return;
	vm.underwaySinceMs = undefined;
	vm.hold();
	vm.setBalloon(actualBytes).catch((error: unknown) => {
		vm.options.log.warn("the VM's balloon can't be changed", { reason: explain(error) });
		vm.failed();
	});
}
