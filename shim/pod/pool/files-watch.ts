/** Tells that files were replaced, written or removed, by their folders (inotify(7)), also when a folder itself goes and comes. */

import { existsSync, statSync, watch } from "node:fs";
import type { FSWatcher } from "node:fs";
import { basename, dirname } from "node:path";

/** Changes come in groups: a package manager's, an editor's. */
const QUIET_MS = 200;
/** A folder that comes while the one above it begins to be watched is tried again so often. */
const ATTEMPTS = 3;

type Names = Map<string, Set<string>>;

/** A folder that is watched: a watch belongs to what had the folder's name when it began. */
interface Watched {
	readonly watcher: FSWatcher;
	readonly identity: string;
	/** It may be gone. */
	doubtful: boolean;
}

/** Watches a set of paths, each a file or a folder with all in it. Whoever makes it closes it. */
export class FilesWatch {
	readonly #onChange: () => void;
	/** By folder: what of it counts ("" for all). */
	#wanted: Names = new Map();
	/** The same, with the folders above. */
	#names: Names = new Map();
	readonly #watched = new Map<string, Watched>();
	#timer: NodeJS.Timeout | undefined;

	/** @param onChange called a moment after the last change of several */
	constructor(onChange: () => void) {
		this.#onChange = onChange;
	}

	/** Watches these paths from now on, and no others. A folder that is not there counts when it comes. @param folders watched with all that is in them */
	set(paths: Iterable<string>, folders: Iterable<string> = []): void {
		this.#wanted = new Map();
		for (const path of paths) add(this.#wanted, dirname(path), basename(path));
		for (const folder of folders) add(this.#wanted, folder, "");
		this.#arm();
	}

	/** Watches nothing any more. */
	close(): void {
		clearTimeout(this.#timer);
		this.set([]);
	}

	/** Each folder is watched, and the one above it for its name: it may be removed, or be a link that is turned. */
	#arm(): void {
		this.#names = new Map();
		for (const [folder, names] of this.#wanted) {
			if (this.#open(folder)) for (const name of names) add(this.#names, folder, name);
			this.#openAbove(folder, ATTEMPTS);
		}
		for (const [folder, { watcher }] of this.#watched) {
			if (this.#names.has(folder)) continue;
			watcher.close();
			this.#watched.delete(folder);
		}
	}

	/** Watches the nearest folder above that is there. */
	#openAbove(folder: string, attempts: number): void {
		for (let [child, parent] = [folder, dirname(folder)]; parent !== child; [child, parent] = [parent, dirname(parent)]) {
			if (!this.#open(parent)) continue;
			add(this.#names, parent, basename(child));
			// What came before it was watched.
			if (child !== folder && existsSync(child) && attempts > 1) this.#openAbove(folder, attempts - 1);
			else if (!this.#watched.has(folder) && this.#open(folder))
				for (const name of this.#wanted.get(folder) ?? []) add(this.#names, folder, name);
			return;
		}
	}

	/** @returns whether the folder that has this name now is watched */
	#open(folder: string): boolean {
		const known = this.#watched.get(folder);
		const identity = identityOf(folder);
		if (known !== undefined && identity === known.identity && !known.doubtful) return true;
		known?.watcher.close();
		this.#watched.delete(folder);
		if (identity === undefined) return false;
		try {
			const watcher = watch(folder, { persistent: false }, (_, name) => this.#noticed(folder, name ?? ""));
			watcher.on("error", () => watcher.close());
			this.#watched.set(folder, { watcher, identity, doubtful: false });
			return true;
		} catch {
			return false;
		}
	}

	#noticed(folder: string, name: string): void {
		const known = this.#watched.get(folder);
		// The folder's own end comes by its own name.
		const own = name === basename(folder);
		if (own && known !== undefined) known.doubtful = true;
		const names = this.#names.get(folder);
		if (!own && (names === undefined || (!names.has(name) && !names.has("")))) return;
		clearTimeout(this.#timer);
		this.#timer = setTimeout(() => {
			this.#arm();
			this.#onChange();
		}, QUIET_MS);
		this.#timer.unref();
	}
}

function add(names: Names, folder: string, name: string): void {
	names.set(folder, (names.get(folder) ?? new Set()).add(name));
}

/** Tells a folder from another one that has its name, and perhaps its number, later. */
function identityOf(folder: string): string | undefined {
	try {
		const { dev, ino, birthtimeNs } = statSync(folder, { bigint: true });
		return `${dev}:${ino}:${birthtimeNs}`;
	} catch {
		return undefined;
	}
}
