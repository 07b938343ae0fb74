/** Where the programs are that do the work: QEMU, the vsock backend, QEMU's small firmware. */
import { accessSync, constants, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";

export type Tools = {
	/** `qemu-system-x86_64`. */
	readonly qemu: string;
	/** `ch-qemu-vsock`; undefined when there is none: VMs without vsock still run. */
	readonly vsock: string | undefined;
	/** The arguments that a child's command is put behind, so that it dies with this process. */
	readonly leash: readonly string[];
};

/** The path that is searched when the environment has none. */
export const DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const VSOCK = "ch-qemu-vsock";

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Finds the programs: `CH_QEMU_SYSTEM` and `CH_QEMU_VSOCK`, else the file `ch-qemu.json` beside the program (`{"qemu":"/path","vsock":"/path"}`), else PATH, where
 * `ch-qemu-vsock` is looked for beside the program first and in the cache of `ch-qemu/build-vsock.sh` last. Throws an error that names what is missing and what to do.
 */
export function findTools(environment: Environment, programFile: string): Tools {
	const beside = dirname(programFile);
	const path = environment["PATH"] ?? DEFAULT_PATH;
	const file = readToolFile(join(beside, "ch-qemu.json"));
	const qemu = environment["CH_QEMU_SYSTEM"] ?? file.qemu ?? search("qemu-system-x86_64", path);
	if (qemu === undefined || !executable(qemu)) {
		throw new Error(
			`qemu-system-x86_64 ${qemu === undefined ? "is not on PATH" : `is not executable at ${qemu}`}: install qemu-system-x86, or name it in CH_QEMU_SYSTEM`,
		);
	}
	const built = join(cacheFolder(environment), VSOCK, "current", VSOCK);
	const vsock = environment["CH_QEMU_VSOCK"] ?? file.vsock ?? search(VSOCK, `${beside}:${path}`) ?? (executable(built) ? built : undefined);
	const setpriv = search("setpriv", path) ?? search("setpriv", DEFAULT_PATH);
	if (setpriv === undefined) throw new Error("setpriv (util-linux) is not on PATH: without it QEMU would outlive this program");
	return { qemu, vsock, leash: [setpriv, "--pdeathsig", "KILL", "--"] };
}

/** The cache folder of docs/contracts.md. The environment may be empty: the user's home then comes from the user database. */
function cacheFolder(environment: Environment): string {
	return (
		environment["CONTAINERD_SHIM_SNP_CACHE"] ?? join(environment["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "containerd-shim-snp")
	);
}

function readToolFile(file: string): { qemu?: string; vsock?: string } {
	let text: string;
	try {
		text = readFileSync(file, "utf8");
	} catch {
		return {};
	}
	const content: unknown = JSON.parse(text);
	if (typeof content !== "object" || content === null) throw new Error(`${file}: an object with "qemu" and "vsock" is expected`);
	const named = (key: string): string | undefined => {
		const value = (content as Record<string, unknown>)[key];
		if (value !== undefined && typeof value !== "string") throw new Error(`${file}: "${key}" must be a path`);
		return value;
	};
	const qemu = named("qemu");
	const vsock = named("vsock");
	return { ...(qemu === undefined ? {} : { qemu }), ...(vsock === undefined ? {} : { vsock }) };
}

function search(name: string, path: string): string | undefined {
	return path
		.split(":")
		.map((folder) => join(folder, name))
		.find(executable);
}

function executable(file: string): boolean {
	try {
		accessSync(file, constants.X_OK);
		return true;
	} catch {
		return false;
	}
}
