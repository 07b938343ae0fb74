/** A template is made of a VM that is booted as one of the pool: known to a later snpd, with little weight, the first to go when memory runs out. */

import { mkdirSync } from "node:fs";
import { join } from "node:path";

import { bootPoolVm } from "../pool/boot-vm.ts";
import type { Shape } from "../pool/shape.ts";
import type { PoolPlace, PoolVm } from "../pool/vm.ts";
import { requireRoom } from "./room.ts";
import { keepTemplate } from "./template.ts";
import type { Template } from "./template.ts";

const SNAPSHOT = "snapshot";
/** Nobody waits for it: its memory may take a while to be written. */
const TIMES_AS_LONG = 5;

/**
 * Boots a VM of this kind, keeps its state as a template, and ends it.
 * @throws ShimError what a step of the boot throws, `storage.full` without room, `vmm.api` when the VMM takes no snapshots, `journal.write`; nothing is left then
 */
export async function makeTemplate(shape: Shape, place: PoolPlace, signal: AbortSignal): Promise<Template> {
	// Of shared memory the VMM leaves out what the guest never used. A VM that waits under such a key is wanted by no pod.
	const asTemplate = { ...shape, key: `template ${shape.key}`, plan: { ...shape.plan, sharedMemory: true } };
	await requireRoom(place.stateDir, shape.plan.memoryMib);
	const vm = await bootPoolVm(asTemplate, place, signal);
	try {
		const { folder } = vm.vmm;
		const snapshot = join(folder, SNAPSHOT);
		// Others have used some of it meanwhile.
		await requireRoom(place.stateDir, vm.size.memoryMib);
		await write(vm, snapshot, shape.config.timeouts.vmm_call_ms, signal);
		const { name, size, details: agent, scratchAddress } = vm;
		const template = keepTemplate(place.stateDir, snapshot, { name, key: shape.key, size, agent, scratchAddress });
		place.log.info("a template is ready", { template: name, ...size, bytes: template.bytes });
		return template;
	} finally {
		await vm.end();
	}
}

async function write(vm: PoolVm, snapshot: string, vmmCallMs: number, signal: AbortSignal): Promise<void> {
	const { client } = vm.vmm;
	// A copy would hold this connection as well.
	vm.leaveAgent();
	await client.pause({ signal, timeoutMs: vmmCallMs });
	mkdirSync(snapshot, { mode: 0o700 });
	await client.snapshot({ destination_url: `file://${snapshot}` }, { signal, timeoutMs: TIMES_AS_LONG * vmmCallMs });
}
