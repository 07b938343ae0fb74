/** What a new snpd must know of a VM that was booted ahead: one document in the VM's folder, written before the effects that it names. */

import { readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";

import * as v from "valibot";

import { errnoOf } from "../../base/errors.ts";
import { agentDetails, replaceDocument } from "../journal.ts";

const FILE = "vm.json";

const vmRecord = v.object({
	version: v.literal(1),
	key: v.string(),
	vcpus: v.number(),
	memoryMib: v.number(),
	cgroup: v.string(),
	/** The file of its writable disk, which has its name until the VMM has it open. */
	scratch: v.nullable(v.string()),
	vmm: v.nullable(v.object({ pid: v.number(), startTime: v.pipe(v.string(), v.digits()) })),
	/** Set once the VM is ready. */
	ready: v.nullable(v.object({ atMs: v.number(), agent: agentDetails, scratchAddress: v.string() })),
});

export type VmRecord = v.InferOutput<typeof vmRecord>;

/** Writes the document of the VM in a folder. @throws ShimError `journal.write` */
export function writeVmRecord(folder: string, record: VmRecord): void {
	replaceDocument(join(folder, FILE), record);
}

/** Forgets it: the VM is a pod's. */
export function dropVmRecord(folder: string): void {
	rmSync(join(folder, FILE), { force: true });
}

/** The folders of VMs that an earlier snpd booted ahead, with their documents where these are sound. */
export function readVmRecords(poolFolder: string): { readonly folder: string; readonly record: VmRecord | null }[] {
	let names: string[];
	try {
		names = readdirSync(poolFolder);
	} catch (error) {
		if (errnoOf(error) === "ENOENT") return [];
		throw error;
	}
	return names.map((name) => ({ folder: join(poolFolder, name), record: readVmRecord(join(poolFolder, name)) }));
}

function readVmRecord(folder: string): VmRecord | null {
	try {
		const parsed = v.safeParse(vmRecord, JSON.parse(readFileSync(join(folder, FILE), "utf8")));
		return parsed.success ? parsed.output : null;
	} catch {
		return null;
	}
}
