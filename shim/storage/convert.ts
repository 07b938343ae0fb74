/**
 * Turns layers into one uncompressed EROFS image. Layers that must be merged are mounted in a mount namespace of the converting process alone, read-only:
 * the writable layer is never an overlay's upper, and the mounts end with the process, however it or snpd ends.
 */

import { spawn } from "node:child_process";
import { constants } from "node:fs";
import { access, mkdir, rm, stat, symlink } from "node:fs/promises";
import { delimiter, join } from "node:path";

import { withDeadlineAndEnd } from "../base/deadline.ts";
import { messageOf, ShimError } from "../base/errors.ts";
import { makeFolder, spaceAt } from "../host/filesystem.ts";
import type { Layer } from "./rootfs-plan.ts";

/** What is converted, and to where. */
export interface Conversion {
	/** Topmost first. */
	readonly layers: readonly Layer[];
	readonly overlayOptions: readonly string[];
	/** The image to make; `<output>.d` beside it is used for mount points. */
	readonly output: string;
	/** When another process holds this lock, wait for it; and make nothing when `unless` exists by then. */
	readonly lock?: { readonly path: string; readonly unless: string } | undefined;
	/** `mkfs.erofs`, or its absolute path. */
	readonly mkfs: string;
	readonly timeoutMs: number;
	readonly signal?: AbortSignal | undefined;
}

/**
 * Arguments: the image that makes the work needless (or empty), the folder of mount points, the overlay's options (or empty), then type,
 * options, source and mount point of each image to mount, `--`, and the command that converts.
 */
const SCRIPT = `set -eu
unless=$1 work=$2 overlay=$3
shift 3
if [ -n "$unless" ] && [ -e "$unless" ]; then exit 0; fi
while [ "$1" != -- ]; do
	mount -t "$1" -o "$2" "$3" "$work/$4"
	shift 4
done
shift
if [ -n "$overlay" ]; then
	cd "$work"
	mount -t overlay -o "$overlay" overlay merged
fi
exec "$@"`;

const MAX_STDERR_CHARACTERS = 4096;
const MIN_FREE_BYTES = 64 * 1024;
/** How long a killed process may take to end. One that hangs in the kernel, on a file system that does not answer, may never do so. */
const END_TIMEOUT_MS = 5_000;
const SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/**
 * Makes the image. Nothing is left behind on failure, and no process on abort; a process that can't be killed keeps its files, which the next
 * sweep removes.
 * @throws ShimError storage.image, storage.full, wait.deadline, wait.canceled
 */
export async function convert(conversion: Conversion): Promise<void> {
	const mkfs = await findMkfs(conversion.mkfs);
	const work = `${conversion.output}.d`;
	let stuck = false;
	try {
		const command = await prepareCommand(conversion, mkfs, work);
		await runToEnd(command, conversion, () => (stuck = true));
	} catch (error) {
		if (!stuck) await rm(conversion.output, { force: true });
		throw await explained(conversion, error);
	} finally {
		if (!stuck) await rm(work, { recursive: true, force: true });
	}
}

/** Lays the mount points out and gives the command line. Layers go by short names, since the options of a mount must fit in one page. */
async function prepareCommand(conversion: Conversion, mkfs: string, work: string): Promise<string[]> {
	const { layers, lock } = conversion;
	const [first] = layers;
	const direct = layers.length === 1 && first?.kind === "folder";
	const mounts: string[] = [];
	const places: string[] = [];
	if (!direct) {
		await makeFolder(join(work, "merged"));
		for (const [index, layer] of layers.entries()) places.push(await layPlace(layer, String(index), work, mounts));
	}
	const overlay = layers.length > 1 ? ["ro", `lowerdir=${places.join(":")}`, ...conversion.overlayOptions].join(",") : "";
	const root = direct ? first.path : join(work, layers.length > 1 ? "merged" : (places[0] ?? ""));
	const command = [mkfs, "-d0", "--quiet", "--preserve-mtime", conversion.output, root];
	return [
		...(lock === undefined ? [] : ["flock", "--exclusive", "--no-fork", lock.path]),
		...(direct ? [] : ["unshare", "--mount", "--propagation", "private"]),
		...["sh", "-c", SCRIPT, "sh", lock?.unless ?? "", work, overlay, ...mounts, "--", ...command],
	];
}

/** Makes the place of one layer and gives its path below `work`. */
async function layPlace(layer: Layer, name: string, work: string, mounts: string[]): Promise<string> {
	if (layer.kind === "folder") {
		await symlink(layer.path, join(work, name));
		return name;
	}
	await mkdir(join(work, name), { mode: 0o700 });
	const file = (await stat(layer.source)).isFile();
	mounts.push(layer.type, ["ro", ...(file ? ["loop"] : []), ...layer.options].join(","), layer.source, name);
	return name + layer.folder;
}

/**
 * Runs a command and returns only when its process is gone, also after an abort: nothing may write to what is then removed.
 * @param onStuck called when the process has not ended some time after it was killed
 */
async function runToEnd(command: readonly string[], conversion: Conversion, onStuck: () => void): Promise<void> {
	const { output, timeoutMs, signal } = conversion;
	const wait = { what: `the conversion to ${output}`, timeoutMs, signal, graceMs: END_TIMEOUT_MS };
	await withDeadlineAndEnd(wait, (given) => run(command, given), onStuck);
}

/** Runs a command; its process is killed when the signal aborts. Settles when the process has ended. */
function run(command: readonly string[], signal: AbortSignal): Promise<void> {
	const [program = "", ...args] = command;
	return new Promise((resolve, reject) => {
		// Newer versions of mount would hand the layers over one by one, and cut long lists.
		const env = { PATH: process.env["PATH"] ?? SYSTEM_PATH, LC_ALL: "C", LIBMOUNT_FORCE_MOUNT2: "always" };
		const child = spawn(program, args, { env, stdio: ["ignore", "ignore", "pipe"], signal, killSignal: "SIGKILL", cwd: "/" });
		let stderr = "";
		child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr = (stderr + text).slice(-MAX_STDERR_CHARACTERS)));
		// After an abort `close` follows; a program that can't be started has no process to wait for.
		child.on("error", (error) => child.pid === undefined && reject(error));
		child.on("close", (code, killed) => {
			if (code === 0) resolve();
			else reject(new Error(`${stderr.trim() || "no message"} (${killed === null ? `exit code ${code}` : killed})`));
		});
	});
}

async function explained(conversion: Conversion, error: unknown): Promise<unknown> {
	if (error instanceof ShimError) return error;
	const full = /No space left on device|Disk quota exceeded/i.test(messageOf(error));
	const space = await spaceAt(join(conversion.output, "..")).catch(() => undefined);
	if (full || (space !== undefined && space.freeBytes < MIN_FREE_BYTES)) {
		return new ShimError("storage.full", `no space left for the root filesystem's image ${conversion.output}`, { cause: error });
	}
	return new ShimError("storage.image", `making the root filesystem's image ${conversion.output}: ${messageOf(error)}`, { cause: error });
}

/** Looks the program up, since a shell's "not found" would not say what to install. */
async function findMkfs(name: string): Promise<string> {
	const folders = name.includes("/") ? [""] : (process.env["PATH"] ?? SYSTEM_PATH).split(delimiter).concat("/usr/sbin", "/sbin");
	for (const folder of folders) {
		const path = folder === "" ? name : join(folder, name);
		try {
			await access(path, constants.X_OK);
			return path;
		} catch {
			// Not here: the next folder.
		}
	}
	throw new ShimError("storage.image", `${name} is not on this node, and root filesystems are converted with it`, {
		remedy: "install the package erofs-utils (apt install erofs-utils)",
	});
}
