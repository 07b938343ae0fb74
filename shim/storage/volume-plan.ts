/**
 * What becomes of a bind mount of the host in a pod whose VM shares nothing with the host. Pure: decided from the path, from what lies
 * there and from the table of mounts. The paths are kubelet's (`pods/UID/volumes/PLUGIN/NAME`, `pods/UID/volume-subpaths/...`).
 */

/** What lies at a mount's source. */
export type SourceType = "missing" | "file" | "folder" | "socket" | "fifo" | "block-device" | "character-device";

/** A line of the table of mounts, see `mountTable` of the room `host`. */
export interface TableEntry {
	readonly place: string;
	readonly root: string;
	readonly device: string;
	readonly type: string;
}

/** A bind mount to decide on. */
export interface VolumeMount {
	/** Where the container sees it. */
	readonly destination: string;
	/** An absolute path of the host. */
	readonly source: string;
	/** True when the container may not write there. */
	readonly readonly: boolean;
	readonly type: SourceType;
	/** True for a folder that is replaced as a whole: it has a symbolic link `..data` (Kubernetes' AtomicWriter). */
	readonly atomic: boolean;
	/** The path of the direct-assigned volume that it is, or lies in; one of `directCandidates`. */
	readonly direct?: string | undefined;
	/** Folders may be shared with the VM. */
	readonly share?: boolean;
}

/** What becomes of it. Paths are the host's; `sub` is below the volume, without a slash at either end, empty for the volume itself. */
export type VolumePlan =
	/** A folder of configuration that is brought again whenever it is replaced; every container of the pod sees the same. */
	| { readonly kind: "live"; readonly path: string }
	/** An empty folder in memory, of the size of the host's tmpfs; shared by the pod. */
	| { readonly kind: "memory"; readonly path: string; readonly sub: string }
	/** An empty folder on the guest's own storage; shared by the pod. */
	| { readonly kind: "scratch"; readonly path: string; readonly sub: string }
	/** An emptyDir of huge pages; shared by the pod. */
	| { readonly kind: "huge"; readonly path: string; readonly sub: string }
	/** A disk of the node with a file system, which the guest mounts; shared by the pod. */
	| { readonly kind: "direct"; readonly path: string; readonly sub: string }
	/** A folder of the node that the VM shares. */
	| { readonly kind: "share"; readonly path: string; readonly readonly: boolean }
	/** A copy that is made once: for the pod, or anew for each container. Mounts with one `key` are of one thing, which is read at `path`. */
	| { readonly kind: "copy"; readonly path: string; readonly key: string; readonly owner: "pod" | "container" }
	| { readonly kind: "missing"; readonly path: string }
	/** What a VM can't have; `why` follows the mount's name, `remedy` says what to do. */
	| { readonly kind: "refused"; readonly why: string; readonly remedy: string };

/** A volume of kubelet and a place in it. */
interface Origin {
	readonly plugin: string;
	/** The volume's folder. */
	readonly path: string;
	readonly sub: string;
	/** True when kubelet made a mount for a part of it: such a part is not brought up to date, as in Kubernetes. */
	readonly part: boolean;
}

const VOLUME = /^(?<path>.*\/pods\/[^/]+\/volumes\/(?<plugin>[^/]+)\/[^/]+)(?:\/(?<sub>.+))?$/u;
const SUB_PATH = /^(?<pod>.*\/pods\/[^/]+)\/volume-subpaths\/(?<volume>[^/]+)\/[^/]+\/\d+$/u;
const DELETED = /\/\/deleted$/u;

const LIVE_PLUGINS: ReadonlySet<string> = new Set([
	"kubernetes.io~configmap",
	"kubernetes.io~secret",
	"kubernetes.io~projected",
	"kubernetes.io~downward-api",
]);
const EMPTY_DIR_PLUGIN = "kubernetes.io~empty-dir";

/** File systems whose files are the kernel's own: a copy of them means nothing. */
const KERNEL_TYPES: ReadonlySet<string> = new Set([
	"proc",
	"sysfs",
	"devtmpfs",
	"devpts",
	"cgroup",
	"cgroup2",
	"debugfs",
	"tracefs",
	"securityfs",
	"configfs",
	"bpf",
	"mqueue",
	"pstore",
	"efivarfs",
	"fusectl",
	"binfmt_misc",
	"nsfs",
	"rpc_pipefs",
	"autofs",
]);

/** True for file systems that hold the kernel's own files: /proc, /sys and their like. */
export function isKernelType(type: string): boolean {
	return KERNEL_TYPES.has(type);
}

const isBelow = (path: string, folder: string): boolean => path === folder || path.startsWith(folder === "/" ? "/" : `${folder}/`);

/** The newest mount that a path lies in; undefined only for a table without a root. */
export function mountOf<Entry extends TableEntry>(path: string, table: readonly Entry[]): Entry | undefined {
	let found: Entry | undefined;
	for (const entry of table) {
		if (isBelow(path, entry.place) && entry.place.length >= (found?.place.length ?? 0)) found = entry;
	}
	return found;
}

function join(folder: string, rest: string): string {
	if (rest === "") return folder;
	return folder === "/" ? `/${rest}` : `${folder}/${rest}`;
}

const rest = (path: string, folder: string): string => path.slice(folder === "/" ? 1 : folder.length + 1);

/** The other paths under which what is mounted at a place can be seen: those of mounts that hold more of the same file system. */
function sources(entry: TableEntry, table: readonly TableEntry[]): string[] {
	const root = entry.root.replace(DELETED, "");
	return table
		.filter((other) => other.device === entry.device && other.place !== entry.place && isBelow(root, other.root))
		.map((other) => join(other.place, rest(root, other.root)))
		.filter((path) => !SUB_PATH.test(path));
}

function volumeOf(path: string, part: boolean): Origin | undefined {
	const groups = VOLUME.exec(path)?.groups;
	if (groups?.["path"] === undefined || groups["plugin"] === undefined) return undefined;
	return { plugin: groups["plugin"], path: groups["path"], sub: groups["sub"] ?? "", part };
}

/** Finds the volume that a path belongs to; for a part that kubelet mounted, by the table of mounts. A path alone is of no volume of kubelet. */
function originOf(source: string, table: readonly TableEntry[]): Origin | { readonly path: string } {
	const groups = SUB_PATH.exec(source)?.groups;
	if (groups === undefined) return volumeOf(source, false) ?? { path: source };
	const entry = table.findLast(({ place }) => place === source);
	const paths = entry === undefined ? [] : sources(entry, table);
	const owned = paths.map((path) => volumeOf(path, true)).filter((origin) => origin?.path.startsWith(`${groups["pod"]}/volumes/`) === true);
	const named = owned.find((origin) => origin?.path.endsWith(`/${groups["volume"]}`) === true);
	return named ?? owned[0] ?? { path: paths[0] ?? source };
}

const refused = (why: string, remedy: string): VolumePlan => ({ kind: "refused", why, remedy });

/** Sources that are neither file nor folder. */
const REFUSED_TYPES: Readonly<Partial<Record<SourceType, VolumePlan>>> = {
	socket: refused("is a socket: a process in a VM can't reach one of the node", "let the pod talk to the node over the network"),
	fifo: refused("is a FIFO: a process in a VM can't reach one of the node", "let the pod talk to the node over the network"),
	"block-device": refused("is a block device of the node", "give it to the pod as a volume with volumeMode: Block"),
	"character-device": refused("is a device of the node, which a VM does not have", "take the device out of the pod"),
};

function emptyDir(origin: Origin, table: readonly TableEntry[]): VolumePlan {
	const { path, sub } = origin;
	const type = table.findLast(({ place }) => place === path)?.type;
	if (type === "tmpfs") return { kind: "memory", path, sub };
	if (type === "hugetlbfs") return { kind: "huge", path, sub };
	return { kind: "scratch", path, sub };
}

/** A folder that is shared, if folders are. It is the mount that kubelet made: the path behind it may have been replaced since. */
function shareOf({ share, type, source, readonly }: VolumeMount): VolumePlan | undefined {
	return share === true && type === "folder" ? { kind: "share", path: source, readonly } : undefined;
}

/**
 * The paths by which a direct-assigned volume may be known that a mount is, or lies in; the innermost first. Those of kubelet's volumes are
 * folders in the volume's own, since kubelet mounts what a CSI driver has below it.
 */
export function directCandidates(source: string, table: readonly TableEntry[]): string[] {
	const origin = originOf(source, table);
	if (!("plugin" in origin)) return [source];
	const names = origin.sub === "" ? [] : origin.sub.split("/");
	return [...names.map((_, index) => join(origin.path, names.slice(0, names.length - index).join("/"))), origin.path];
}

/**
 * Decides what becomes of a bind mount.
 * @param table the host's mounts in the order of mounting
 */
export function planVolume(mount: VolumeMount, table: readonly TableEntry[]): VolumePlan {
	const { source, type } = mount;
	const origin = originOf(source, table);
	if (type === "missing") return { kind: "missing", path: source };
	if (mount.direct !== undefined) {
		const path = "plugin" in origin ? join(origin.path, origin.sub) : origin.path;
		return { kind: "direct", path: mount.direct, sub: rest(path, mount.direct) };
	}
	const special = REFUSED_TYPES[type];
	if (special !== undefined) return special;
	if ("plugin" in origin) {
		if (origin.plugin === EMPTY_DIR_PLUGIN) return emptyDir(origin, table);
		const configuration = LIVE_PLUGINS.has(origin.plugin) || mount.atomic;
		if (configuration && !origin.part && origin.sub === "" && type === "folder") return { kind: "live", path: source };
		const shared = shareOf(mount);
		if (!configuration && shared !== undefined) return shared;
		if (configuration || mount.readonly) return { kind: "copy", path: source, key: source, owner: "container" };
		return refused(
			`belongs to a ${origin.plugin.replace("~", "/")} volume that the container may write: what it writes could not reach the volume`,
			"mount it read-only, or use a volume with volumeMode: Block or a direct-assigned one: docs/volumes.md says how",
		);
	}
	if (mount.atomic) return { kind: "live", path: source };
	const holder = mountOf(origin.path, table);
	if (holder !== undefined && isKernelType(holder.type))
		return refused(
			`lies in a ${holder.type} file system: it shows the node's kernel, and the VM has its own`,
			"use the container's own /proc, /sys and /dev",
		);
	const shared = shareOf(mount);
	if (shared !== undefined) return shared;
	// Read at the mount that kubelet made: the path behind it may have been replaced since, by a link to anywhere.
	return { kind: "copy", path: source, key: origin.path, owner: "pod" };
}
