/**
 * Direct-assigned volumes: a CSI driver leaves a block device unmounted and says, in a file beside the volume's path, what is on it and how it
 * is to be mounted in the VM (Kata Containers, direct block device assignment: `mountInfo.json`).
 */

import { constants } from "node:fs";
import { lstat, open } from "node:fs/promises";
import { geteuid } from "node:process";

import * as v from "valibot";

import { errnoOf, messageOf, ShimError } from "../base/errors.ts";

/** What is on a direct-assigned volume. */
export interface DirectVolume {
	/** The device, or a plain file that holds the image; on the node. */
	readonly device: string;
	readonly fstype: FileSystem;
	/** For mounting it in the guest. */
	readonly options: readonly string[];
	readonly readonly: boolean;
	/** Who shall own it; undefined: as it is. */
	readonly group: { readonly id: number; readonly onRootMismatch: boolean } | undefined;
}

/** File systems that a guest may know. */
const FILE_SYSTEMS = ["ext4", "xfs", "erofs"] as const;
type FileSystem = (typeof FILE_SYSTEMS)[number];
/** Kinds of volumes: the names that Kata's two runtimes have for a block device. */
const VOLUME_TYPES = ["block", "directvol"];

const MAX_BYTES = 64 * 1024;
const MAX_OPTIONS = 64;
const MAX_NAME_BYTES = 255;
/** Permission bits of others than the owner to write. */
const FOREIGN_WRITE = 0o022;

/** Options that ask for something else than a mount of the volume. `X-` words are instructions to the agent. */
const FOREIGN_OPTION = /^(?:X-|x-|bind$|rbind$|remount$|loop(?:=|$)|(?:r?shared|r?slave|r?private|r?unbindable)$)/u;
const OPTION = /^[\x21-\x2b\x2d-\x7e]{1,256}$/u;

const groupPolicies = ["Always", "OnRootMismatch"] as const;
const mountInfo = v.strictObject({
	"volume-type": v.picklist(VOLUME_TYPES, `is none of ${VOLUME_TYPES.join(", ")}: other kinds of volumes are not served`),
	device: v.pipe(v.string(), v.regex(/^\/[^\0]+$/u, "is not an absolute path")),
	fstype: v.picklist(FILE_SYSTEMS, `is none of ${FILE_SYSTEMS.join(", ")}: the guest knows no other`),
	metadata: v.optional(
		v.nullable(
			v.strictObject({
				fsGroup: v.optional(v.pipe(v.string(), v.regex(/^\d{1,10}$/u, "is not a group's number"))),
				fsGroupChangePolicy: v.optional(v.picklist(groupPolicies, `is none of ${groupPolicies.join(", ")}`)),
			}),
		),
	),
	options: v.optional(
		v.nullable(
			v.pipe(
				v.array(
					v.pipe(
						v.string(),
						v.regex(OPTION, "is no mount option"),
						v.check((option) => !FOREIGN_OPTION.test(option), "has no meaning for a volume in a VM"),
					),
				),
				v.maxLength(MAX_OPTIONS, `has more than ${MAX_OPTIONS} entries`),
			),
		),
	),
});

const MAX_GROUP = 0xffff_fffe;

/** The names of the folder that may belong to a volume's path: base64 with the URL's alphabet, with padding as Kata writes it, and without. */
function folderNames(path: string): string[] {
	const plain = Buffer.from(path).toString("base64url");
	const padded = plain.padEnd(Math.ceil(plain.length / 4) * 4, "=");
	return [...new Set([padded, plain])].filter((name) => name.length <= MAX_NAME_BYTES);
}

/**
 * What a direct-assigned volume has on it.
 * @param root the folder of all direct-assigned volumes
 * @param path the volume's, as containers mount it
 * @returns undefined when the path is of no such volume
 * @throws ShimError `volume.invalid` that names the file and the field
 */
export async function readDirectVolume(root: string, path: string): Promise<DirectVolume | undefined> {
	for (const name of folderNames(path)) {
		const folder = `${root}/${name}`;
		const file = `${folder}/mountInfo.json`;
		try {
			const stats = await lstat(folder);
			if (!stats.isDirectory()) throw invalid(file, "its folder is a symbolic link, or no folder");
			requireOwn(file, stats);
			return parseMountInfo(await readOwn(file), file);
		} catch (error) {
			if (errnoOf(error) === "ENOENT" || errnoOf(error) === "ENOTDIR") continue;
			if (error instanceof ShimError) throw error;
			throw invalid(file, errnoOf(error) === "ELOOP" ? "is a symbolic link" : `can't be read: ${messageOf(error)}`);
		}
	}
	return undefined;
}

async function readOwn(file: string): Promise<string> {
	const handle = await open(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
	try {
		const stats = await handle.stat();
		if (!stats.isFile()) throw invalid(file, "is no plain file");
		requireOwn(file, stats);
		if (stats.size > MAX_BYTES) throw invalid(file, `has ${stats.size} bytes; at most ${MAX_BYTES} are taken`);
		return await handle.readFile("utf8");
	} finally {
		await handle.close();
	}
}

/** Whoever may write there can have any disk of the node given to a pod. */
function requireOwn(file: string, { uid, mode }: { readonly uid: number; readonly mode: number }): void {
	if (uid !== (geteuid?.() ?? 0) || (mode & FOREIGN_WRITE) !== 0) throw invalid(file, "may be written by others than root");
}

/**
 * Reads the content of a `mountInfo.json`.
 * @param file its path, for messages
 * @throws ShimError `volume.invalid`
 */
export function parseMountInfo(text: string, file: string): DirectVolume {
	let value: unknown;
	try {
		value = JSON.parse(text);
	} catch (error) {
		throw invalid(file, `is not JSON: ${messageOf(error)}`);
	}
	const parsed = v.safeParse(mountInfo, value);
	if (!parsed.success) {
		const [issue] = parsed.issues;
		const field = v.getDotPath(issue);
		if (field === null) throw invalid(file, "is not a JSON object");
		throw invalid(file, `${field}: ${issue.type === "strict_object" ? structureProblem(issue) : issue.message}`);
	}
	const { device, fstype, metadata, options } = parsed.output;
	const words = options ?? [];
	const id = metadata?.fsGroup === undefined ? undefined : Number(metadata.fsGroup);
	if (id !== undefined && id > MAX_GROUP) throw invalid(file, `metadata.fsGroup: ${id} is not a group's number`);
	const onRootMismatch = metadata?.fsGroupChangePolicy === "OnRootMismatch";
	return {
		device,
		fstype,
		options: words,
		readonly: fstype === "erofs" || words.findLast((word) => word === "ro" || word === "rw") === "ro",
		group: id === undefined ? undefined : { id, onRootMismatch },
	};
}

/** Valibot tells a field that is too many and one that is missing by what it expected there. */
function structureProblem({ expected, received }: v.BaseIssue<unknown>): string {
	if (expected === "never") return "there is no such field";
	return received === "undefined" ? "is missing" : "is not a JSON object";
}

function invalid(file: string, what: string): ShimError {
	return new ShimError("volume.invalid", `the direct-assigned volume's ${file} ${what}`);
}
