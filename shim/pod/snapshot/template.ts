/** A template on the disk: a VMM's snapshot of a VM with nothing of a pod in it, and a document beside it. It is whole, or not there. */

import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";

import * as v from "valibot";

import type { AgentDetails } from "../../agent/client.ts";
import { errnoOf, messageOf, ShimError } from "../../base/errors.ts";
import { templatesFolder } from "../../base/names.ts";
import { bootId } from "../../host/node.ts";
import { ownConfig, SNAPSHOT_CONFIG, SNAPSHOT_MEMORY, SNAPSHOT_STATE } from "../../vmm/snapshot.ts";
import type { OwnParts } from "../../vmm/snapshot.ts";
import { agentDetails, replaceDocument } from "../journal.ts";
import type { MachineSize } from "../sizing.ts";

const DOCUMENT = "template.json";
/** Where a VM's own view of a template lies in its folder, while it is restored. */
const VIEW = "restore";
const BLOCK_BYTES = 512;

const templateRecord = v.object({
	version: v.literal(1),
	key: v.string(),
	vcpus: v.number(),
	memoryMib: v.number(),
	/** What the snapshot's memory is long: a VMM does not notice when some of it is missing. */
	memoryBytes: v.number(),
	atMs: v.number(),
	/** The node's: a VM's state says something to the machine that it was taken on. */
	bootId: v.string(),
	agent: agentDetails,
	scratchAddress: v.string(),
});

/** See `Shape` for the key. */
export interface Template {
	readonly name: string;
	readonly folder: string;
	readonly key: string;
	readonly size: MachineSize;
	/** What it takes of its file system. */
	readonly bytes: number;
	readonly memoryBytes: number;
	readonly madeAtMs: number;
	/** What the guest's agent says of itself. */
	readonly agent: AgentDetails;
	/** The PCI address of the writable disk; empty without one. */
	readonly scratchAddress: string;
}

/** What is known of a template beside its files. */
export type TemplateFacts = Pick<Template, "name" | "key" | "size" | "agent" | "scratchAddress">;

/**
 * Makes a finished snapshot a template, by a rename.
 * @param snapshot the folder that the VMM wrote, in the same file system
 * @throws ShimError `journal.write`
 */
export function keepTemplate(stateDir: string, snapshot: string, { name, key, size, agent, scratchAddress }: TemplateFacts): Template {
	const parent = templatesFolder(stateDir);
	const folder = join(parent, name);
	try {
		const memoryBytes = statSync(join(snapshot, SNAPSHOT_MEMORY)).size;
		const madeAtMs = Date.now();
		const rest = { agent: { ...agent }, scratchAddress, bootId: bootId(), atMs: madeAtMs };
		replaceDocument(join(snapshot, DOCUMENT), { version: 1, key, ...size, memoryBytes, ...rest });
		mkdirSync(parent, { recursive: true, mode: 0o700 });
		renameSync(snapshot, folder);
		return { name, folder, key, size, bytes: roomOf(folder), memoryBytes, madeAtMs, agent, scratchAddress };
	} catch (error) {
		if (error instanceof ShimError) throw error;
		throw new ShimError("journal.write", `the template ${folder} can't be kept: ${messageOf(error)}`, { cause: error });
	}
}

/** The templates that an earlier snpd made. What is none, or is of another boot of the node, is removed. */
export function readTemplates(stateDir: string): Template[] {
	const parent = templatesFolder(stateDir);
	return namesIn(parent).flatMap((name) => {
		const template = readTemplate(join(parent, name));
		if (template === undefined) rmSync(join(parent, name), { recursive: true, force: true });
		return template === undefined ? [] : [template];
	});
}

/** Removes it; a VM that is being restored from it is then booted. */
export function removeTemplate({ folder }: Template): void {
	rmSync(folder, { recursive: true, force: true });
}

/**
 * What the VMM restores a VM from: the template's files, seen from a folder of the VM's, with the VM's own configuration.
 * @param folder the VM's
 * @returns the folder for the VMM
 * @throws Error when the template is not whole
 */
export function makeView(template: Template, folder: string, own: OwnParts): string {
	const { size } = statSync(join(template.folder, SNAPSHOT_MEMORY));
	if (size !== template.memoryBytes) throw new Error(`the template's memory has ${size} bytes, not ${template.memoryBytes}`);
	const view = join(folder, VIEW);
	dropView(folder);
	mkdirSync(view, { mode: 0o700 });
	for (const name of [SNAPSHOT_STATE, SNAPSHOT_MEMORY]) symlinkSync(join(template.folder, name), join(view, name));
	const text = ownConfig(readFileSync(join(template.folder, SNAPSHOT_CONFIG), "utf8"), own);
	writeFileSync(join(view, SNAPSHOT_CONFIG), text, { mode: 0o600 });
	return view;
}

/** The VM is there: the VMM has open what it still needs. */
export function dropView(folder: string): void {
	rmSync(join(folder, VIEW), { recursive: true, force: true });
}

function readTemplate(folder: string): Template | undefined {
	try {
		const record = v.parse(templateRecord, JSON.parse(readFileSync(join(folder, DOCUMENT), "utf8")));
		const { key, vcpus, memoryMib, memoryBytes, atMs, agent, scratchAddress } = record;
		if (record.bootId !== bootId()) return undefined;
		const rest = { bytes: roomOf(folder), memoryBytes, madeAtMs: atMs, agent, scratchAddress };
		return { name: basename(folder), folder, key, size: { vcpus, memoryMib }, ...rest };
	} catch {
		return undefined;
	}
}

function roomOf(folder: string): number {
	return readdirSync(folder).reduce((sum, name) => sum + statSync(join(folder, name)).blocks * BLOCK_BYTES, 0);
}

function namesIn(folder: string): string[] {
	try {
		return readdirSync(folder);
	} catch (error) {
		if (errnoOf(error) === "ENOENT") return [];
		throw error;
	}
}
