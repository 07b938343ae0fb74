/**
 * A VM as a copy of its template: launched as any, restored instead of booted, and made another one than all other copies before anything of the pod reaches it.
 * A copy that does not come is booted: no pod fails because of a template.
 */

import { rm } from "node:fs/promises";

import { withDeadline } from "../../base/deadline.ts";
import { Scope } from "../../base/scope.ts";
import { isNoOnDemand } from "../../vmm/api-error.ts";
import type { Vmm } from "../../vmm/launcher.ts";
import { bootMachine, CGROUP_RELEASE, connectAgent, GuestEnd, launchOwned, SCRATCH_DISK } from "../boot.ts";
import type { BootContext, BootDisk, Booted } from "../boot.ts";
import { watchMachine } from "../machine.ts";
import { plugOwn, renew } from "../pool/take.ts";
import { quickly } from "../quick-start.ts";
import type { QuickWay } from "../quick-start.ts";
import { undo } from "../undo.ts";
import { dropView, makeView } from "./template.ts";
import type { TemplateUse } from "./templates.ts";

/** A copy gets this part of the time that a boot may take: what it fails to do is then done by one. */
const PART_OF_BOOT = 0.5;

type Restored = Pick<Booted, "machine" | "scratchAddress" | "guestEnded">;

/**
 * Starts the VM: as a copy of a template, or, without one or when that fails, by a boot.
 * @throws ShimError as `bootMachine`
 */
export async function startMachine(context: BootContext, use: TemplateUse | undefined): Promise<Booted> {
	if (use === undefined) return bootMachine(context);
	const { podId, config, signal, log } = context;
	const scope = new Scope(`copy of a template for pod ${podId}`);
	let copied = false;
	const way: QuickWay<Booted> = {
		what: "a copy of a template",
		start: async (entered) => {
			const wait = { what: `restoring the VM of pod ${podId} from a template`, timeoutMs: config.timeouts.boot_ms * PART_OF_BOOT, signal };
			const restored = await withDeadline(wait, (inTime) => restore({ ...context, scope, signal: inTime }, use));
			scope.moveTo(context.scope);
			copied = true;
			use.worked();
			entered();
			return { ...restored, diskAddress: await plugIn(context, restored) };
		},
		failed: (error) => {
			if (!copied) use.failed(error);
		},
		discard: () => discard(context, scope),
		boot: () => bootMachine(context),
	};
	try {
		return await quickly(way, { signal, log, brought: [context.disk, context.network, context.scratch] });
	} catch (error) {
		// A pod that is given up meanwhile has no other way.
		if (!copied) await undo(scope, log);
		throw error;
	}
}

/** Ends what there is of a copy: its VMM was killed, and would leave its socket in the way of the next one. */
async function discard({ plan, folder, scope: podScope }: BootContext, scope: Scope): Promise<void> {
	// The group is the next VMM's as well.
	const removeGroup = scope.take(CGROUP_RELEASE);
	try {
		await scope.close();
	} catch (error) {
		if (removeGroup !== undefined) podScope.defer(CGROUP_RELEASE, removeGroup);
		throw error;
	}
	dropView(folder);
	await rm(plan.vsock, { force: true });
}

function plugIn(context: BootContext, { machine }: Restored): Promise<string> {
	const { podId, config, signal } = context;
	const lost = machine.died.then((death) => Promise.reject(death));
	lost.catch(() => undefined);
	const wait = { what: `starting pod ${podId} in a copy of a template`, timeoutMs: config.timeouts.boot_ms, signal };
	return withDeadline({ ...wait, reason: "vmm.boot-timeout" }, (inTime) => Promise.race([lost, plugOwn(context, machine, inTime)]));
}

async function restore(context: BootContext, use: TemplateUse): Promise<Restored> {
	const { timeline, signal, podId, plan } = context;
	const guestEnd = new GuestEnd();
	const launched = launchOwned(context, guestEnd);
	const [vmm, scratch] = await Promise.all([launched, context.scratch]);
	await timeline.step("vm-restore", () => restoreVm(context, vmm, scratch, use));
	const agent = await timeline.step("agent-connect", () => connectAgent(context, { starting: false }));
	// Before anything of the pod is there: what a copy draws at random from here on is its own.
	await timeline.step("reseed", () => renew(agent, signal));
	const { agent: details, scratchAddress } = use.template;
	const died = watchMachine(podId, vmm, agent, guestEnd.ended);
	const machine = { vmm, agent, details, vsock: plan.vsock, removals: guestEnd.removals, died };
	return { machine, scratchAddress, guestEnded: guestEnd.ended };
}

async function restoreVm(
	{ folder, plan, config, signal }: BootContext,
	vmm: Vmm,
	scratch: BootDisk | undefined,
	use: TemplateUse,
): Promise<void> {
	const view = makeView(use.template, folder, {
		vsock: plan.vsock,
		serialFile: plan.consoleFile,
		disks: scratch === undefined ? {} : { [SCRATCH_DISK]: scratch.path },
		sharedMemory: plan.sharedMemory,
		landlockRules: plan.landlockRules,
	});
	const request = { source_url: `file://${view}`, resume: true };
	const call = { signal, timeoutMs: config.timeouts.vmm_call_ms };
	try {
		await vmm.client.restore({ ...request, memory_restore_mode: use.mode }, call).catch(async (error: unknown) => {
			const { cause } = error as Error;
			if (use.mode !== "OnDemand" || !isNoOnDemand(cause)) throw error;
			use.onDemandRefused(error);
			await vmm.client.restore({ ...request, memory_restore_mode: "Copy" }, call);
		});
	} finally {
		dropView(folder);
	}
}
