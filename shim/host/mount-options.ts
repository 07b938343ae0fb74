/** containerd's mount options, as runc and containerd read them: words that are flags of mount(2), everything else data for the file system. */

import { MS } from "../../native/src/mount.ts";

/** Options taken apart. */
export interface ParsedOptions {
	/** `MS`, added up. */
	readonly flags: number;
	/** `MS` of a change of propagation (`rprivate`...), which is a mount(2) of its own; 0 when there is none. */
	readonly propagation: number;
	/** What the file system reads. */
	readonly data: string;
	/** Put a loop device between the file and the mount. */
	readonly loop: boolean;
}

interface FlagWord {
	readonly set?: number;
	readonly clear?: number;
}

const FLAG_WORDS: Readonly<Record<string, FlagWord>> = {
	async: { clear: MS.SYNCHRONOUS },
	atime: { clear: MS.NOATIME },
	bind: { set: MS.BIND },
	defaults: {},
	dev: { clear: MS.NODEV },
	diratime: { clear: MS.NODIRATIME },
	dirsync: { set: MS.DIRSYNC },
	exec: { clear: MS.NOEXEC },
	lazytime: { set: MS.LAZYTIME },
	mand: { set: MS.MANDLOCK },
	noatime: { set: MS.NOATIME },
	nodev: { set: MS.NODEV },
	nodiratime: { set: MS.NODIRATIME },
	noexec: { set: MS.NOEXEC },
	nolazytime: { clear: MS.LAZYTIME },
	nomand: { clear: MS.MANDLOCK },
	norelatime: { clear: MS.RELATIME },
	nostrictatime: { clear: MS.STRICTATIME },
	nosuid: { set: MS.NOSUID },
	rbind: { set: MS.BIND + MS.REC },
	relatime: { set: MS.RELATIME },
	remount: { set: MS.REMOUNT },
	ro: { set: MS.RDONLY },
	rw: { clear: MS.RDONLY },
	strictatime: { set: MS.STRICTATIME },
	suid: { clear: MS.NOSUID },
	sync: { set: MS.SYNCHRONOUS },
};

const PROPAGATION_WORDS: Readonly<Record<string, number>> = {
	private: MS.PRIVATE,
	rprivate: MS.PRIVATE + MS.REC,
	shared: MS.SHARED,
	rshared: MS.SHARED + MS.REC,
	slave: MS.SLAVE,
	rslave: MS.SLAVE + MS.REC,
	unbindable: MS.UNBINDABLE,
	runbindable: MS.UNBINDABLE + MS.REC,
};

/** Takes options apart; a later word wins over an earlier one. */
export function parseMountOptions(options: readonly string[]): ParsedOptions {
	let flags = 0;
	let propagation = 0;
	let loop = false;
	const data: string[] = [];
	for (const option of options) {
		const word = Object.hasOwn(FLAG_WORDS, option) ? FLAG_WORDS[option] : undefined;
		const change = Object.hasOwn(PROPAGATION_WORDS, option) ? PROPAGATION_WORDS[option] : undefined;
		if (word !== undefined) flags = ((flags & ~(word.clear ?? 0)) | (word.set ?? 0)) >>> 0;
		else if (change !== undefined) propagation = change;
		else if (option === "loop") loop = true;
		else if (option !== "") data.push(option);
	}
	return { flags, propagation, data: data.join(","), loop };
}
