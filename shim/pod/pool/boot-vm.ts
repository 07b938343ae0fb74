/** The boot of a VM that no pod has yet: as a pod's, with little weight, in a group with a bound of its own, and known to a later snpd from its first effect on. */

import { randomBytes } from "node:crypto";
import { mkdirSync, rmSync } from "node:fs";
import { basename, join } from "node:path";

import { messageOf, ShimError } from "../../base/errors.ts";
import type { Log } from "../../base/log.ts";
import { poolFolder } from "../../base/names.ts";
import { Scope } from "../../base/scope.ts";
import type { Config } from "../../config/schema.ts";
import { makeScratchFile, removeScratchFile } from "../../storage/scratch-file.ts";
import type { Vmm } from "../../vmm/launcher.ts";
import { SCRATCH_DISK } from "../boot.ts";
import type { BootContext, BootDisk } from "../boot.ts";
import { writeInitdataDisk } from "../initdata-disk.ts";
import { readyPlan } from "../launch.ts";
import type { PodPlan } from "../plan.ts";
import { startMachine } from "../snapshot/restore.ts";
import type { TemplateUse } from "../snapshot/templates.ts";
import { Timeline } from "../timeline.ts";
import { undo } from "../undo.ts";
import { PoolCgroup } from "./cgroup.ts";
import { writeVmRecord } from "./record.ts";
import type { VmRecord } from "./record.ts";
import { planIn } from "./shape.ts";
import type { Shape } from "./shape.ts";
import { podIdOf, PoolVm } from "./vm.ts";
import type { PoolPlace } from "./vm.ts";

const NAME_BYTES = 8;
/** Nobody waits for it: it may take so many times as long as the boot of a pod's VM. */
const TIMES_AS_LONG = 5;
/** A VM that nobody uses yet is the first to go when memory runs out (proc(5), oom_score_adj). */
const FIRST_TO_GO = 1000;

/**
 * Boots a VM for the pool.
 * @param template what it is a copy of instead, if that works
 * @throws ShimError what a step of the boot throws; nothing is left then
 */
export async function bootPoolVm(shape: Shape, { stateDir, log }: PoolPlace, signal: AbortSignal, template?: TemplateUse): Promise<PoolVm> {
	const name = randomBytes(NAME_BYTES).toString("hex");
	const folder = join(poolFolder(stateDir), name);
	const scope = new Scope(`VM ${name} of the pool`);
	const own = log.with({ vm: name });
	try {
		makeVmFolder(folder);
		scope.defer("folder", () => rmSync(folder, { recursive: true, force: true }));
		return await bootIn(folder, shape, { scope, log: own, signal, template });
	} catch (error) {
		await undo(scope, own);
		throw error;
	}
}

interface BootParts {
	readonly scope: Scope;
	readonly log: Log;
	readonly signal: AbortSignal;
	readonly template: TemplateUse | undefined;
}

async function bootIn(folder: string, { key, plan: common, config }: Shape, { scope, log, signal, template }: BootParts): Promise<PoolVm> {
	const plan = await readyPlan(planIn(common, folder));
	const { vcpus, memoryMib, confidential } = plan;
	const cgroup = new PoolCgroup(basename(folder), memoryMib);
	const scratchFile = plan.scratch?.path ?? null;
	const begun: VmRecord = { version: 1, key, vcpus, memoryMib, cgroup: cgroup.path, scratch: scratchFile, vmm: null, ready: null };
	writeVmRecord(folder, begun);
	let launched = begun;
	const context = {
		podId: podIdOf(basename(folder)),
		folder,
		plan,
		config: patient(config),
		timeline: new Timeline(),
		scope,
		signal,
		log,
		cgroup,
		oomScore: FIRST_TO_GO,
		disk: undefined,
		initdata: confidential === undefined ? undefined : writeInitdataDisk(folder, confidential.initdata),
		scratch: makeScratch(plan, scope),
		network: Promise.resolve(undefined),
		onVmm: ({ pid, startTime }: Vmm) => {
			launched = { ...begun, vmm: { pid, startTime: startTime.toString() } };
			writeVmRecord(folder, launched);
		},
	} satisfies BootContext;
	const { machine, scratchAddress, guestEnded } = await startMachine(context, template);
	if (confidential !== undefined && !machine.details.lateBinding)
		throw new ShimError(
			"guest.protocol",
			`the agent of ${plan.image} takes no policy after its launch: no confidential VM can wait for a pod`,
		);
	// The VMM has it open.
	if (scratchFile !== null) await removeScratchFile(scratchFile);
	const ready = { atMs: Date.now(), agent: { ...machine.details }, scratchAddress };
	writeVmRecord(folder, { ...launched, ready });
	log.info("a VM is ready", { vmm: machine.vmm.pid, vcpus, memoryMib });
	return new PoolVm({ record: { ...launched, ready }, scope, machine, guestEnded, log });
}

function makeVmFolder(folder: string): void {
	try {
		mkdirSync(folder, { recursive: true, mode: 0o700 });
	} catch (error) {
		throw new ShimError("journal.write", `the folder ${folder} can't be made: ${messageOf(error)}`, { cause: error });
	}
}

function makeScratch({ scratch }: PodPlan, scope: Scope): Promise<BootDisk | undefined> {
	if (scratch === undefined) return Promise.resolve(undefined);
	const { path, maxBytes } = scratch;
	const made = makeScratchFile(path, maxBytes).then(() => ({ id: SCRATCH_DISK, path }));
	scope.defer(`file ${path}`, async () => {
		// It must not come after its removal.
		await made.catch(() => undefined);
		await removeScratchFile(path);
	});
	return made;
}

function patient({ timeouts, ...config }: Config): Config {
	return { ...config, timeouts: { ...timeouts, boot_ms: TIMES_AS_LONG * timeouts.boot_ms } };
}
