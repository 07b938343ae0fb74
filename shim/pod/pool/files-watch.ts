/** Tells that files were replaced, written or removed, by their folders (inotify(7)). */

import { watch } from "node:fs";
import type { FSWatcher } from "node:fs";
import { basename, dirname } from "node:path";

/** Changes come in groups: a package manager's, an editor's. */
const QUIET_MS = 200;

/** Watches a set of paths, each a file or a folder with all in it. Whoever makes it closes it. */
export class FilesWatch {
	readonly #onChange: () => void;
	/** By folder: what of it counts, and who watches it; none where it can't be watched. */
	readonly #folders = new Map<string, { readonly names: ReadonlySet<string>; readonly watcher: FSWatcher | undefined }>();
	#timer: NodeJS.Timeout | undefined;

	/** @param onChange called a moment after the last change of several */
	constructor(onChange: () => void) {
		this.#onChange = onChange;
	}

	/** Watches these paths from now on, and no others. A folder that is not there is passed over. @param folders watched with all that is in them */
	set(paths: Iterable<string>, folders: Iterable<string> = []): void {
		const wanted = new Map<string, Set<string>>();
		for (const path of paths) wanted.set(dirname(path), (wanted.get(dirname(path)) ?? new Set()).add(basename(path)));
		for (const folder of folders) wanted.set(folder, (wanted.get(folder) ?? new Set()).add(""));
		for (const [folder, { watcher }] of this.#folders) {
			if (wanted.has(folder) && watcher !== undefined) continue;
			watcher?.close();
			this.#folders.delete(folder);
		}
		for (const [folder, names] of wanted) {
			const known = this.#folders.get(folder);
			this.#folders.set(folder, { names, watcher: known?.watcher ?? this.#watch(folder) });
		}
	}

	/** Watches nothing any more. */
	close(): void {
		clearTimeout(this.#timer);
		this.set([]);
	}

	#watch(folder: string): FSWatcher | undefined {
		try {
			const watcher = watch(folder, { persistent: false }, (_, name) => this.#noticed(folder, name ?? ""));
			watcher.on("error", () => watcher.close());
			return watcher;
		} catch {
			return undefined;
		}
	}

	#noticed(folder: string, name: string): void {
		const names = this.#folders.get(folder)?.names;
		if (names === undefined || (!names.has(name) && !names.has(""))) return;
		clearTimeout(this.#timer);
		this.#timer = setTimeout(this.#onChange, QUIET_MS);
		this.#timer.unref();
	}
}
