/** Configurations that were read before: what nobody has changed is not read and checked again for each pod, and pods share it. */

import { statSync } from "node:fs";

import { Recent } from "../base/recent.ts";
import { dropInsOf, loadConfig } from "./load.ts";
import type { Config } from "./schema.ts";

/** As many files as a node's runtime classes name, and more; beyond that the one that was used longest ago is read anew. */
const MAX_KNOWN = 64;
/** Clocks of file systems are coarse: a second change within one of their steps could not be told from the first. */
const SETTLED_MS = 1_000;

interface Known {
	readonly config: Config;
	readonly paths: readonly string[];
	readonly stamp: string;
}

/** The configuration files of a process that lives long. */
export class KnownConfigs {
	readonly #nowMs: () => number;
	readonly #known = new Recent<Known>(MAX_KNOWN);

	/** @param nowMs the time by which files are told to have settled */
	constructor(nowMs: () => number = Date.now) {
		this.#nowMs = nowMs;
	}

	/** As `loadConfig`. The files are looked at each time, which must be on a file system that answers. */
	async load(file: string, options: { readonly required: boolean }): Promise<Config> {
		const key = `${options.required ? "required" : "optional"} ${file}`;
		const known = this.#known.get(key);
		if (known !== undefined && stampOf(known.paths).text === known.stamp) return known.config;
		this.#known.delete(key);
		const nowMs = this.#nowMs();
		const paths = [file, `${file}.d`, ...(await dropInsOf(file))];
		const before = stampOf(paths);
		const config = await loadConfig(file, options);
		const settled = before.changedMs < nowMs - SETTLED_MS && stampOf(paths).text === before.text;
		if (settled) this.#known.set(key, { config, paths, stamp: before.text });
		return config;
	}
}

/** What changes with any change of the files, and the time of the last one. A file that comes into a folder, or goes, changes the folder. */
function stampOf(paths: readonly string[]): { readonly text: string; readonly changedMs: number } {
	const found = paths.map((path) => statSync(path, { bigint: true, throwIfNoEntry: false }));
	return {
		text: found
			.map((stats) => (stats === undefined ? "" : [stats.dev, stats.ino, stats.size, stats.mtimeNs, stats.ctimeNs].join()))
			.join(" "),
		changedMs: Math.max(0, ...found.map((stats) => Number(stats?.ctimeMs ?? 0))),
	};
}
