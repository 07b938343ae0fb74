/**
 * The journal of a pod: one small JSON document on tmpfs that is replaced, whole, before each effect, so that a new snpd finds what an
 * earlier one had acquired. A rename makes the replacement atomic; tmpfs needs no sync.
 */

import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";

import * as v from "valibot";

import { errnoOf, messageOf, ShimError } from "../base/errors.ts";
import { replaceFile } from "../base/replace-file.ts";

const FILE = "journal.json";

const stdio = v.object({ stdin: v.string(), stdout: v.string(), stderr: v.string(), terminal: v.boolean() });
const exit = v.object({ status: v.number(), atMs: v.number() });

const processRecord = v.object({
	execId: v.string(),
	stdio,
	streams: v.object({ stdin: v.number(), stdout: v.number(), stderr: v.number() }),
	state: v.picklist(["created", "starting", "running", "stopped"]),
	exit: v.nullable(exit),
	stdinClosed: v.boolean(),
	killed: v.optional(v.boolean(), false),
	/** The exec's own specification while it was not started, as containerd gave it. */
	spec: v.nullable(v.string()),
});

const containerRecord = v.object({
	id: v.string(),
	bundle: v.string(),
	/** False while the guest may know only a part of it. */
	complete: v.boolean(),
	paused: v.boolean(),
	/** The limits as they are now; null: those of the specification. */
	limits: v.optional(
		v.nullable(
			v.object({ cpuQuotaUs: v.number(), cpuPeriodUs: v.number(), memoryBytes: v.number(), hugeBytes: v.optional(v.number(), 0) }),
		),
		null,
	),
	/** Its address is null while it may be in the VM or not. */
	disk: v.nullable(
		v.object({
			id: v.string(),
			path: v.string(),
			file: v.optional(v.string(), ""),
			address: v.optional(v.nullable(v.string()), null),
		}),
	),
	processes: v.array(processRecord),
});

const sandboxRecord = v.object({
	bundle: v.string(),
	createdAtMs: v.number(),
	started: v.boolean(),
	exit: v.nullable(exit),
	/** Kernel parameters for every container. */
	sysctls: v.record(v.string(), v.string()),
});

const machineSize = v.object({ vcpus: v.number(), memoryMib: v.number() });

const tombstone = v.object({
	containerId: v.string(),
	execId: v.string(),
	pid: v.number(),
	exitStatus: v.number(),
	exitedAtMs: v.number(),
});

/** What the guest's agent said of itself. */
export const agentDetails = v.object({
	version: v.string(),
	streams: v.boolean(),
	limits: v.optional(v.boolean(), false),
	files: v.optional(v.boolean(), false),
	forward: v.optional(v.boolean(), false),
	volumes: v.optional(v.boolean(), false),
	mounts: v.optional(v.boolean(), false),
	pci: v.optional(v.boolean(), false),
	hugepages: v.optional(v.boolean(), false),
	verity: v.optional(v.boolean(), false),
	scratch: v.optional(v.boolean(), false),
	damage: v.optional(v.boolean(), false),
	lateBinding: v.optional(v.boolean(), false),
	seccomp: v.boolean(),
});

const podRecord = v.object({
	version: v.literal(1),
	identity: v.object({
		key: v.string(),
		namespace: v.string(),
		podId: v.string(),
		address: v.string(),
		ttrpcAddress: v.string(),
		publishBinary: v.string(),
		configFile: v.nullable(v.string()),
	}),
	/** What the pod was started with. Absent from journals of older versions. */
	config: v.optional(v.unknown(), null),
	/** 0 while none was ever here. */
	keeperPid: v.number(),
	/** With the number it names a process for ever; null when it is not known. */
	keeperStartTime: v.optional(v.nullable(v.pipe(v.string(), v.digits())), null),
	/** What containerd's Sandbox API knows of the pod; null for one that was made by its first container. */
	sandbox: v.optional(v.nullable(sandboxRecord), null),
	/** `gone`: nobody needs it any more, and what is left of it is being given back. */
	state: v.picklist(["booting", "running", "lost", "gone"]),
	/** The namespace whose interfaces are in the VM, while there may be something to undo there. */
	network: v.optional(v.nullable(v.object({ path: v.string(), id: v.string(), queues: v.number(), told: v.array(v.string()) })), null),
	vmm: v.nullable(v.object({ pid: v.number(), startTime: v.string() })),
	/** What the VM has now, and what it may grow to. */
	size: v.optional(v.nullable(v.object({ now: machineSize, most: machineSize })), null),
	/** The file of the pod's writable disk; it has its name until the VM has it open. */
	scratch: v.optional(v.nullable(v.string()), null),
	/** PCI segments of the VM. */
	pciSegments: v.optional(v.number(), 1),
	/** The path of the VMM's control group. */
	cgroup: v.optional(v.nullable(v.string()), null),
	/** The path of the control group that the VM was booted ahead in, while it may be there. */
	poolCgroup: v.optional(v.nullable(v.string()), null),
	agent: v.nullable(agentDetails),
	/** Copies in the guest that the pod's containers share; `whole` once one is there altogether. */
	volumes: v.optional(v.array(v.object({ kind: v.picklist(["live", "copy"]), path: v.string(), key: v.string(), whole: v.boolean() })), []),
	/** Folders of the node that the VM shares, or may; the process is their virtiofsd. */
	shares: v.optional(
		v.array(
			v.object({
				id: v.string(),
				path: v.string(),
				readonly: v.boolean(),
				process: v.nullable(v.object({ pid: v.number(), startTime: v.string() })),
				plugged: v.boolean(),
				users: v.array(v.string()),
			}),
		),
		[],
	),
	/** Disks of the node that are, or may be, in the VM for volumes; `source` is empty while one may not be. */
	disks: v.optional(
		v.array(v.object({ id: v.string(), key: v.string(), readonly: v.boolean(), source: v.string(), users: v.array(v.string()) })),
		[],
	),
	/** emptyDirs that have, or may have, a disk: kubelet's folder and the disk's file; no file for one that lies on the pod's writable disk. */
	emptyDirs: v.optional(v.array(v.object({ path: v.string(), file: v.string() })), []),
	nextNumber: v.number(),
	containers: v.array(containerRecord),
	tombstones: v.array(tombstone),
	/** When the spans began, in milliseconds since 1970. */
	beganAtMs: v.optional(v.number()),
	spans: v.array(v.object({ step: v.string(), startMs: v.number(), durationMs: v.optional(v.number()), failed: v.boolean() })),
});

export type PodRecord = v.InferOutput<typeof podRecord>;
export type ContainerRecord = v.InferOutput<typeof containerRecord>;
export type ProcessRecord = v.InferOutput<typeof processRecord>;
export type SandboxRecord = Readonly<v.InferOutput<typeof sandboxRecord>>;
export type Tombstone = v.InferOutput<typeof tombstone>;

/** One pod's journal, in the pod's folder. */
export class Journal {
	readonly #folder: string;

	/** @param folder the pod's folder; made by `open` */
	constructor(folder: string) {
		this.#folder = folder;
	}

	/**
	 * Makes the pod's folder.
	 * @throws ShimError `journal.write` that names the file system when it is full or read-only
	 */
	open(): void {
		try {
			mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
		} catch (error) {
			throw writeFailure(this.#folder, error);
		}
	}

	/**
	 * Replaces the document.
	 * @throws ShimError `journal.write`; the old document is then still whole
	 */
	write(record: PodRecord): void {
		replaceDocument(join(this.#folder, FILE), record);
	}

	/**
	 * As `open`, with the folder of a VM that was booted ahead: it becomes the pod's, with the pod's first document in it, in one step. What an earlier start of
	 * the pod has left in its own folder is of no use any more.
	 * @throws ShimError `journal.write`; the folder is then as it was
	 */
	takeFolder(folder: string, record: PodRecord): void {
		replaceDocument(join(folder, FILE), record);
		try {
			mkdirSync(dirname(this.#folder), { recursive: true, mode: 0o700 });
			rmSync(this.#folder, { recursive: true, force: true });
			renameSync(folder, this.#folder);
		} catch (error) {
			throw writeFailure(this.#folder, error);
		}
	}

	/** Removes the pod's folder with all that is in it. */
	remove(): void {
		rmSync(this.#folder, { recursive: true, force: true });
	}
}

/**
 * Replaces a document on tmpfs in one step.
 * @throws ShimError `journal.write`; the old document is then still whole
 */
export function replaceDocument(path: string, value: unknown): void {
	try {
		replaceFile(path, JSON.stringify(value));
	} catch (error) {
		throw writeFailure(path, error);
	}
}

function writeFailure(path: string, error: unknown): ShimError {
	const full = errnoOf(error) === "ENOSPC";
	return new ShimError(
		"journal.write",
		`the pod's journal ${path} can't be written: ${full ? "no space left on its file system" : messageOf(error)}`,
		{ cause: error },
	);
}

/** What a new snpd finds in a pod's folder. */
export type FoundRecord = { readonly folder: string; readonly record: PodRecord } | { readonly folder: string; readonly damage: string };

/** Reads the journals of all pods below `<state dir>/p`. A folder without a sound journal is reported as damaged, not skipped. */
export function readJournals(podsFolder: string): FoundRecord[] {
	let names: string[];
	try {
		names = readdirSync(podsFolder);
	} catch (error) {
		if (errnoOf(error) === "ENOENT") return [];
		throw new ShimError("journal.invalid", `the folder of all pods ${podsFolder} can't be read: ${messageOf(error)}`, { cause: error });
	}
	return names.map((name) => {
		const folder = join(podsFolder, name);
		try {
			const parsed = v.safeParse(podRecord, JSON.parse(readFileSync(join(folder, FILE), "utf8")));
			if (parsed.success) return { folder, record: parsed.output };
			return { folder, damage: `${v.getDotPath(parsed.issues[0]) ?? "document"}: ${parsed.issues[0].message}` };
		} catch (error) {
			return { folder, damage: messageOf(error) };
		}
	});
}
