/** The data of a generated policy: what `rules.rego` compares requests with. */

/** A value that is known, or a pattern (Rust's regular expressions, RE2's syntax) for one that only the run tells. */
export type Expected = string | Pattern;

/** What a value must be like, from its first to its last character. */
export interface Pattern {
	readonly pattern: string;
	/** The value may be missing. */
	readonly optional?: true;
}

/** A layer of an image, as dm-verity opens it. */
export interface LayerData {
	readonly root_hash: string;
	/** Where the hash tree begins. */
	readonly data_bytes: number;
	readonly salt: string;
}

/**
 * Where in the guest a mount's source may lie (docs/contracts.md): a file or a copy of the container's own, a folder of configuration, a
 * copy of the pod's, an emptyDir in memory, on the guest's own storage or of huge pages, a disk of the node.
 */
export type MountKind = "file" | "own-copy" | "config" | "copy" | "memory" | "scratch" | "huge" | "disk";

/** A mount that a container declares. */
export interface MountData {
	readonly destination: string;
	/** The volume's name; of mounts that are no volume's, something of their own. */
	readonly volume: string;
	readonly kinds: readonly MountKind[];
	readonly access: "ro" | "rw" | "either";
	/** The place in the volume; empty for the volume itself. */
	readonly sub: Expected;
	/** The runtime may leave it out. */
	readonly optional?: true;
}

/** What a container's processes are. */
export interface ProcessData {
	readonly terminal: boolean;
	readonly args: readonly Expected[];
	readonly env: Readonly<Record<string, Expected>>;
	/** Of whole `NAME=value` texts that may come besides; none matches the end of a line. */
	readonly env_patterns: readonly string[];
	readonly cwd: string;
	readonly user: {
		readonly uid: number;
		readonly gid: number;
		readonly groups: readonly number[];
		/** Groups that some versions of containerd name and others don't. */
		readonly optional_groups: readonly number[];
	};
	readonly capabilities: readonly string[];
	readonly no_new_privileges: boolean;
}

/** One container. */
export interface ContainerData {
	readonly name: string;
	/** Topmost first. */
	readonly layers: readonly LayerData[];
	readonly process: ProcessData;
	readonly root_readonly: boolean;
	readonly mounts: readonly MountData[];
	/** Paths of block devices of the node. */
	readonly devices: readonly string[];
	readonly privileged: boolean;
	readonly sysctls: Readonly<Record<string, string>>;
	readonly seccomp: "required" | "any";
	readonly masked_paths: readonly string[];
	readonly readonly_paths: readonly string[];
}

/** A command that the host may run in a container. */
export interface ExecData {
	/** Empty: in any. */
	readonly container: string;
	readonly any: boolean;
	readonly args: readonly Expected[];
}

/** What the host may do beside running the pod. */
export interface AllowData {
	readonly exec: readonly ExecData[];
	readonly logs: boolean;
	readonly stdin: boolean;
	readonly ports: readonly number[];
	readonly termination_message: boolean;
}

/** `policy_data`. */
export interface PolicyData {
	readonly pod: {
		/** Of the guest. */
		readonly hostname: Expected;
		readonly share_pid: boolean;
		/** Some volume is brought by the host, file by file. */
		readonly copies: boolean;
	};
	readonly allow: AllowData;
	readonly containers: readonly ContainerData[];
}

/** Makes a text match itself in a pattern. */
export function escapePattern(text: string): string {
	return text.replaceAll(/[\\^$.*+?()[\]{}|]/gu, (special) => `\\${special}`);
}

/** A pattern for a whole value. */
export function wholly(pattern: string, optional = false): Pattern {
	return { pattern: `^(?:${pattern})$`, ...(optional ? { optional: true } : {}) };
}
