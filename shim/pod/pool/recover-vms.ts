/** VMs that an earlier snpd booted ahead: taken up again, or cleared away. */

import { rmSync } from "node:fs";
import { basename } from "node:path";

import { AgentClient } from "../../agent/client.ts";
import { messageOf } from "../../base/errors.ts";
import type { Log } from "../../base/log.ts";
import { AGENT_PORT, poolFolder } from "../../base/names.ts";
import { Scope } from "../../base/scope.ts";
import { HostCgroup } from "../../host/cgroups.ts";
import { removeScratchFile } from "../../storage/scratch-file.ts";
import { adoptVmm } from "../../vmm/launcher.ts";
import { dialGuest } from "../../vmm/vsock.ts";
import { TtrpcClient } from "../../wire/client.ts";
import { AGENT_RELEASE, CGROUP_RELEASE, GuestEnd, VM_RELEASE } from "../boot.ts";
import { watchMachine } from "../machine.ts";
import { clearAway } from "../recovery.ts";
import { undo } from "../undo.ts";
import { readVmRecords } from "./record.ts";
import type { VmRecord } from "./record.ts";
import { podIdOf, PoolVm, vsockOf } from "./vm.ts";
import type { PoolPlace } from "./vm.ts";

/** How long a guest may take to answer. */
const GREET_MS = 5_000;

/**
 * The VMs that an earlier snpd booted ahead: those that are ready and answer are taken up, all else of them is cleared away.
 * Never rejects: what can't be cleared away is logged.
 */
export async function recoverPoolVms(place: PoolPlace): Promise<PoolVm[]> {
	const found = await Promise.all(
		readVmRecords(poolFolder(place.stateDir)).map(async ({ folder, record }) => {
			const vm = record === null ? undefined : await adopt(folder, record, place);
			if (vm === undefined) await clear(folder, record, place.log);
			return vm === undefined ? [] : [vm];
		}),
	);
	return found.flat();
}

async function clear(folder: string, record: VmRecord | null, log: Log): Promise<void> {
	try {
		await clearAway(folder, null, log);
		if (record === null) return;
		if (record.scratch !== null) await removeScratchFile(record.scratch);
		await new HostCgroup(record.cgroup).remove();
	} catch (error) {
		log.error("something of a VM that was booted ahead is left", error, { folder });
	}
}

async function adopt(folder: string, record: VmRecord, { log }: PoolPlace): Promise<PoolVm | undefined> {
	const { vmm: known, ready } = record;
	if (known === null || ready === null) return undefined;
	const name = basename(folder);
	const guestEnd = new GuestEnd();
	const scope = new Scope(`VM ${name} of the pool`);
	const own = log.with({ vm: name });
	try {
		const { pid, startTime } = known;
		const vmm = adoptVmm({ pid, startTime: BigInt(startTime), folder, onEvent: (event) => guestEnd.accept(event) });
		if (vmm === undefined) return undefined;
		scope.defer("folder", () => rmSync(folder, { recursive: true, force: true }));
		scope.defer(CGROUP_RELEASE, () => new HostCgroup(record.cgroup).remove());
		scope.defer(VM_RELEASE, async () => {
			await vmm.kill();
		});
		const { socket } = await dialGuest(vsockOf(folder), AGENT_PORT, { timeoutMs: GREET_MS });
		const agent = new AgentClient(new TtrpcClient(socket, { name: `the guest agent of VM ${name} of the pool`, log: own }), GREET_MS);
		scope.defer(AGENT_RELEASE, () => agent.close());
		await agent.check();
		const died = watchMachine(podIdOf(name), vmm, agent, guestEnd.ended);
		const machine = { vmm, agent, details: ready.agent, vsock: vsockOf(folder), removals: guestEnd.removals, died };
		own.info("a VM that waits is taken up again", { vmm: pid });
		return new PoolVm({ record: { ...record, ready }, scope, machine, guestEnded: guestEnd.ended, log: own });
	} catch (error) {
		own.warn("a VM of an earlier snpd is of no use any more", { reason: messageOf(error) });
		await undo(scope, own);
		return undefined;
	}
}
