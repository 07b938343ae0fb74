/** What of a VM is decided when it boots: two pods whose plans have the same key can have the same VM. Pure, but for a look at the files. */

import { createHash } from "node:crypto";
import { basename, dirname, join } from "node:path";

import type { Config } from "../../config/schema.ts";
import { fileStamp } from "../../host/filesystem.ts";
import { nodeSize } from "../../host/node.ts";
import { bindOnlyInitdata } from "../../policy/bind-only.ts";
import { INITDATA_ANNOTATION } from "../../policy/initdata.ts";
import { SCRATCH_DISK, vmConfig } from "../boot.ts";
import { INITDATA_DISK } from "../initdata-disk.ts";
import { planPod } from "../plan.ts";
import type { PodPlan } from "../plan.ts";

/** A kind of VM. */
export interface Shape {
	/** 64 hexadecimal digits: the same for VMs that can stand for each other. */
	readonly key: string;
	/** Of a VM that belongs to no pod; `planIn` says what it is in its own folder. */
	readonly plan: PodPlan;
	readonly config: Config;
}

/** Stands for the folder of any VM. */
const ANY_FOLDER = "/vm";

/** What a confidential VM is launched with that waits for its pod: the pod's own is bound later. */
const BIND_ONLY = bindOnlyInitdata();

/**
 * A plan without what is a pod's own, for a VM in another folder: its sockets, its console and the rules for its files follow the folder, and its
 * writable disk has the folder's name. The initdata of a confidential one is that of all that wait.
 * @param plan as `planPod` gives it
 */
export function planIn(plan: PodPlan, folder: string): PodPlan {
	const was = dirname(plan.vsock);
	const { consoleFile, scratch, landlockRules, confidential } = plan;
	return {
		...plan,
		vsock: join(folder, basename(plan.vsock)),
		consoleFile: consoleFile === undefined ? undefined : join(folder, basename(consoleFile)),
		scratch: scratch === undefined ? undefined : { ...scratch, path: join(dirname(scratch.path), `${basename(folder)}.img`) },
		landlockRules: landlockRules?.map((rule) => (rule.path === was ? { ...rule, path: folder } : rule)),
		hostname: "",
		cgroupsPath: "",
		network: { kind: "loopback" },
		confidential: confidential === undefined ? undefined : { ...confidential, initdata: BIND_ONLY.gzip, hostData: BIND_ONLY.hostData },
	};
}

/** The plan of a pod whose containers have no limits. */
export function usualPlan(config: Config): PodPlan {
	const annotations = config.confidential.mode === "off" ? {} : { [INITDATA_ANNOTATION]: Buffer.from(BIND_ONLY.gzip).toString("base64") };
	const spec = { annotations, linux: { namespaces: [{ type: "network" }] } };
	return planIn(planPod("any", spec, config, ANY_FOLDER, nodeSize()), ANY_FOLDER);
}

/** True for a pod that can have a VM which was booted before anything was known of it: without a group of its own its VM would have nowhere to move to. */
export function isPoolable(plan: PodPlan): boolean {
	return plan.cgroupsPath !== "";
}

/**
 * The kind of VM that a plan asks for: all that the VMM is asked for and started with, and the state of the files that the VM is made of.
 * @throws SystemError when one of the files is not there
 */
export async function shapeOf(plan: PodPlan, config: Config): Promise<Shape> {
	const common = planIn(plan, ANY_FOLDER);
	const { hypervisorPath, kernel, image, scratch, confidential } = common;
	const igvm = confidential?.mode === "snp" ? [confidential.igvm] : [];
	const stamps = await Promise.all([hypervisorPath, kernel, image, ...igvm].map(fileStamp));
	const disks = {
		disk: undefined,
		initdata: confidential === undefined ? undefined : { id: INITDATA_DISK, path: join(ANY_FOLDER, confidential.hostData) },
		scratch: scratch === undefined ? undefined : { id: SCRATCH_DISK, path: scratch.path },
	};
	const { log_level: logLevel, seccomp } = config.hypervisor;
	const parts = [hypervisorPath, logLevel, seccomp, confidential?.mode ?? "off", vmConfig(common, disks), scratch?.maxBytes ?? 0, stamps];
	return { key: createHash("sha256").update(JSON.stringify(parts)).digest("hex"), plan: common, config };
}
