/**
 * Brings what was read of a host's file or folder into the guest: in batches for our own agent, entry by entry with the copying call of Kata's
 * protocol for others. One batch is on its way while the next is read.
 */

import type { AgentClient, CallOptions, VolumeChange } from "../agent/client.ts";
import { ShimError } from "../base/errors.ts";
import type { Attributes, TreeEntry } from "../storage/folder-tree.ts";

/** Bytes and changes after which a batch goes; one piece of a file may come on top. */
const BATCH_BYTES = 1024 * 1024;
const BATCH_CHANGES = 1024;
/** What a change takes on the wire besides its bytes, at most. */
const CHANGE_BYTES = 64;
const FOLDER_TYPE = 0o040000;
const FILE_TYPE = 0o100000;
const LINK_TYPE = 0o120000;
const FOLDER_MODE = 0o755;
const MAX_PATH_BYTES = 4096;

/** How many entries went, and what was left out. */
export interface CopyResult {
	readonly entries: number;
	readonly bytes: number;
	/** The first few paths that could not be copied, with what they are. */
	readonly leftOut: readonly string[];
}

const MAX_NAMED = 16;

/** Takes entries into one volume of the guest. */
export interface VolumeSink {
	put(entry: TreeEntry, path: Buffer): Promise<void>;
	/** Ends with everything there. */
	finish(): Promise<void>;
}

const slash = Buffer.from("/");

/** A path below a folder of the volume. */
export function below(folder: Buffer, path: Buffer): Buffer {
	if (folder.length === 0) return path;
	return path.length === 0 ? folder : Buffer.concat([folder, slash, path]);
}

/** Collects changes and sends them in batches, for agents with `volumes`. */
export class ChangeSink implements VolumeSink {
	readonly #agent: AgentClient;
	readonly #volume: string;
	readonly #options: CallOptions;
	#changes: VolumeChange[] = [];
	#bytes = 0;
	#sent: Promise<void> = Promise.resolve();

	constructor(agent: AgentClient, volume: string, options: CallOptions) {
		this.#agent = agent;
		this.#volume = volume;
		this.#options = options;
	}

	/** Adds a change; what fails of earlier batches is thrown here, or by `finish`. */
	async change(change: VolumeChange): Promise<void> {
		const { path, file, link, hard_link, rename } = change;
		const size = [path, file?.data, link?.target, hard_link, rename].reduce((sum, part) => sum + (part?.length ?? 0), CHANGE_BYTES);
		if (this.#changes.length >= BATCH_CHANGES || (this.#bytes > 0 && this.#bytes + size > 2 * BATCH_BYTES)) await this.#send();
		this.#changes.push(change);
		this.#bytes += size;
		if (this.#bytes >= BATCH_BYTES) await this.#send();
	}

	async put(entry: TreeEntry, path: Buffer): Promise<void> {
		if (path.length > MAX_PATH_BYTES) throw new ShimError("volume.copy", `a path in the volume is longer than ${MAX_PATH_BYTES} bytes`);
		const change = asChange(entry, path);
		if (change !== undefined) await this.change(change);
	}

	async finish(): Promise<void> {
		await this.#send();
		await this.#sent;
	}

	/** Waits for the batch before, then sends this one without waiting for it. */
	async #send(): Promise<void> {
		await this.#sent;
		const changes = this.#changes;
		this.#changes = [];
		this.#bytes = 0;
		if (changes.length === 0) return;
		this.#sent = this.#agent.changeVolume(this.#volume, changes, this.#options);
		// Whoever adds the next one, or finishes, hears of it.
		this.#sent.catch(() => undefined);
	}
}

function asChange(entry: TreeEntry, path: Buffer): VolumeChange | undefined {
	switch (entry.kind) {
		case "folder":
			return { path, folder: { mode: entry.mode, uid: entry.uid, gid: entry.gid } };
		case "piece": {
			const { offset, data, last, mode, uid, gid } = entry;
			return { path, file: { offset, data, last, mode, uid, gid, modified_ns: roundedTime(entry.modifiedNs) } };
		}
		case "link":
			return { path, link: { target: entry.target, uid: entry.uid, gid: entry.gid } };
		case "hard-link":
			return { path, hard_link: entry.first };
		case "left-out":
			return undefined;
	}
}

/** As a number, which is off by less than a microsecond. */
const roundedTime = (ns: bigint): number => Number(ns / 1000n) * 1000;

/** Sends entry by entry with Kata's copying call; further names of a file become files of their own where the caller reads them so. */
export class CopyFileSink implements VolumeSink {
	readonly #agent: AgentClient;
	readonly #volume: string;
	readonly #options: CallOptions;

	constructor(agent: AgentClient, volume: string, options: CallOptions) {
		this.#agent = agent;
		this.#volume = volume;
		this.#options = options;
	}

	async put(entry: TreeEntry, path: Buffer): Promise<void> {
		if (entry.kind === "folder") await this.#copy(path, FOLDER_TYPE, entry, { size: 0, offset: 0, data: Buffer.alloc(0) });
		else if (entry.kind === "link") await this.#copy(path, LINK_TYPE, entry, { size: entry.target.length, offset: 0, data: entry.target });
		else if (entry.kind === "piece") {
			const { offset, data } = entry;
			await this.#copy(path, FILE_TYPE, entry, { size: entry.last ? offset + data.length : entry.sizeBytes, offset, data });
		} else if (entry.kind === "hard-link") {
			throw new ShimError("volume.copy", `${path.toString()} is a second name of a file, which this guest agent can't make`);
		}
	}

	async finish(): Promise<void> {}

	async #copy(path: Buffer, type: number, attributes: Attributes, content: { size: number; offset: number; data: Buffer }): Promise<void> {
		const { mode, uid, gid } = attributes;
		await this.#agent.copyFile(
			{
				path: path.length === 0 ? this.#volume : `${this.#volume}/${path.toString()}`,
				file_size: content.size,
				file_mode: type | mode,
				dir_mode: FOLDER_MODE,
				uid,
				gid,
				offset: content.offset,
				data: content.data,
			},
			this.#options,
		);
	}
}

/**
 * Puts all entries of a tree below a folder of the volume.
 * @param folder names joined by slashes; empty for the volume itself
 * @throws ShimError of the reading, or of the agent's call
 */
export async function copyTree(tree: AsyncIterable<TreeEntry>, sink: VolumeSink, folder: Buffer): Promise<CopyResult> {
	const leftOut: string[] = [];
	let entries = 0;
	let bytes = 0;
	for await (const entry of tree) {
		entries += 1;
		if (entry.kind === "piece") bytes += entry.data.length;
		if (entry.kind === "left-out" && leftOut.length < MAX_NAMED) leftOut.push(`${entry.path.toString()} (${entry.what})`);
		const placed = entry.kind === "hard-link" ? { ...entry, first: below(folder, entry.first) } : entry;
		await sink.put(placed, below(folder, entry.path));
	}
	await sink.finish();
	return { entries, bytes, leftOut };
}
