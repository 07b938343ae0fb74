/**
 * The requests that snpd would send for a pod, without one: from the pod's YAML and its images, by way of the specification that containerd would
 * write and of the conversions that snpd itself uses.
 */

import { createHash } from "node:crypto";

import { guestContainerVolume, guestFile, guestOwnVolume, guestSpec, guestVolume, SHM_PLACE } from "../agent/guest-spec.ts";
import type { GuestSource } from "../agent/guest-spec.ts";
import type { OciMount, OciSpec } from "../agent/oci-spec.ts";
import { containerRequest, copyRequest, sandboxRequest } from "../agent/request-json.ts";
import type { NamedRequest } from "../agent/request-json.ts";
import { diskStorage, emptyDirStorage, hugeEmptyDirStorage, layerStorages, shmStorage } from "../agent/storages.ts";
import type { StorageRequest } from "../agent/storages.ts";
import type { ContainerData, Expected, MountData, MountKind, PolicyData } from "../policy/policy-data.ts";

/** Where kubelet would have the pod's volumes. */
const POD_FOLDER = "/var/lib/kubelet/pods/00000000-0000-4000-8000-000000000000";
const PLUGINS: Readonly<Record<MountKind, string>> = {
	file: "kubernetes.io~configmap",
	"own-copy": "kubernetes.io~configmap",
	config: "kubernetes.io~configmap",
	copy: "local",
	memory: "kubernetes.io~empty-dir",
	scratch: "kubernetes.io~empty-dir",
	huge: "kubernetes.io~empty-dir",
	disk: "kubernetes.io~csi",
};
const MIB = 1024 * 1024;
const [DISK_SLOT, VOLUME_SLOT] = ["05", "06"];
/** What the guest takes for this project's agent. */
const AGENT = { podPid: 1, sandbox: false, seccomp: true, limits: true } as const;

const id = (...names: readonly string[]): string => createHash("sha256").update(names.join("/")).digest("hex");

/** A text of a sample, which has no patterns. */
function known(expected: Expected): string {
	return typeof expected === "string" ? expected : "";
}

/** The requests of a sample pod, in the order in which snpd sends them. */
export function sampleRequests(pod: PolicyData): NamedRequest[] {
	const hostname = known(pod.pod.hostname);
	const sandbox = sandboxRequest({
		hostname,
		dns: [],
		storages: [shmStorage()],
		sandbox_pidns: false,
		sandbox_id: id(hostname),
	});
	return [sandbox, ...pod.containers.flatMap((container) => containerRequests(container, pod))];
}

function containerRequests(container: ContainerData, pod: PolicyData): NamedRequest[] {
	const containerId = id(known(pod.pod.hostname), container.name);
	const binds = container.mounts.map((mount, index) => ({ mount, index, place: placeOf(mount, containerId, index) }));
	const spec = specOf(container, pod);
	const sources = new Map(binds.map(({ mount, place }) => [mount.destination, place.source]));
	const storages = new Map(
		binds.flatMap(({ place }) => (place.storage === undefined ? [] : [[place.storage.mount_point, place.storage] as const])),
	);
	const files = binds.filter(({ place }) => place.file).map(({ place }) => copyRequest(place.source.path));
	const request = containerRequest({
		container_id: containerId,
		exec_id: containerId,
		storages: [
			...layerStorages(
				containerId,
				DISK_SLOT,
				container.layers.map(({ data_bytes, root_hash, salt }) => ({ dataBytes: data_bytes, rootHash: root_hash, salt })),
			),
			...storages.values(),
		],
		devices: container.devices.map((path) => ({ type: "blk", id: VOLUME_SLOT, container_path: path })),
		OCI: guestSpec(spec, { ...AGENT, containerId, guestSources: sources, disks: new Set(container.devices) }),
		sandbox_pidns: pod.pod.share_pid,
		stdin_port: container.process.terminal ? 1 : 0,
		stdout_port: 2,
		stderr_port: 3,
	});
	return [...files, request];
}

interface Place {
	readonly source: GuestSource;
	readonly storage: StorageRequest | undefined;
	readonly file: boolean;
}

/** Where a mount's source would lie in the guest. */
function placeOf(mount: MountData, containerId: string, index: number): Place {
	const kind: MountKind = mount.kinds[0] ?? "file";
	const path = `${POD_FOLDER}/volumes/${PLUGINS[kind]}/${mount.volume}`;
	const volume = guestOwnVolume(path, true);
	const sub = known(mount.sub);
	const below: GuestSource = sub === "" ? { path: volume } : { path: volume, sub };
	const owned = { volume, mode: 0o777, uid: 0, gid: 0 };
	switch (kind) {
		case "file":
			return { source: { path: guestFile(containerId, index) }, storage: undefined, file: true };
		case "own-copy":
			return { source: { path: guestContainerVolume(containerId, `${path}/${sub}`) }, storage: undefined, file: false };
		case "config":
		case "copy":
			return { source: { path: guestVolume(path) }, storage: undefined, file: false };
		case "memory":
			return { source: below, storage: emptyDirStorage({ ...owned, kind: "memory", sizeBytes: 64 * MIB }), file: false };
		case "scratch":
			return { source: below, storage: emptyDirStorage({ ...owned, kind: "scratch", sizeBytes: 0 }), file: false };
		case "huge":
			return {
				source: below,
				storage: hugeEmptyDirStorage({ ...owned, pageBytes: 2 * MIB, sizeBytes: 64 * MIB, reserved: false }),
				file: false,
			};
		case "disk":
			return {
				source: below,
				storage: diskStorage({ volume, source: VOLUME_SLOT, fstype: "ext4", options: [], group: undefined }),
				file: false,
			};
	}
}

/** The specification as containerd's CRI plugin writes it (containerd 2.1, internal/cri/server). */
function specOf(container: ContainerData, pod: PolicyData): OciSpec {
	const { process, privileged } = container;
	const access = privileged ? "rw" : "ro";
	const nothing = ["nosuid", "noexec", "nodev"];
	const system: OciMount[] = [
		{ destination: "/proc", type: "proc", source: "proc", options: nothing },
		{ destination: "/dev", type: "tmpfs", source: "tmpfs", options: ["nosuid", "strictatime", "mode=755", "size=65536k"] },
		{
			destination: "/dev/pts",
			type: "devpts",
			source: "devpts",
			options: ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
		},
		{ destination: "/dev/mqueue", type: "mqueue", source: "mqueue", options: nothing },
		{ destination: "/sys", type: "sysfs", source: "sysfs", options: [...nothing, access] },
		{ destination: "/sys/fs/cgroup", type: "cgroup", source: "cgroup", options: [...nothing, "relatime", access] },
		{ destination: SHM_PLACE, type: "bind", source: "/run/shm", options: ["rbind", "ro"] },
	];
	const taken = new Set(container.mounts.map(({ destination }) => destination));
	const mounts: OciMount[] = container.mounts.map(({ destination, access: wanted }) => ({
		destination,
		type: "bind",
		source: "/node",
		options: ["rbind", "rprivate", wanted === "either" ? "rw" : wanted],
	}));
	const depth = ({ destination }: OciMount): number => destination.split("/").length;
	const capabilities = process.capabilities.map(String);
	const { uid, gid, groups } = process.user;
	return {
		ociVersion: "1.2.0",
		process: {
			terminal: process.terminal,
			user: { uid, gid, additionalGids: [...new Set([gid, ...groups])] },
			args: process.args.map(known),
			env: Object.entries(process.env).map(([name, value]) => `${name}=${known(value)}`),
			cwd: process.cwd,
			capabilities: { bounding: capabilities, effective: capabilities, permitted: capabilities },
			noNewPrivileges: process.no_new_privileges,
			oomScoreAdj: 1000,
		},
		root: { path: "rootfs", readonly: container.root_readonly },
		mounts: [...system.filter(({ destination }) => !taken.has(destination)), ...mounts].sort((a, b) => depth(a) - depth(b)),
		annotations: { "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": container.name },
		linux: {
			sysctl: container.sysctls,
			namespaces: ["pid", "ipc", "uts", "mount", "network"].map((type) => ({ type, ...namespacePath(type, pod) })),
			devices: container.devices.map((path) => ({ path, type: "b", major: 7, minor: 0 })),
			resources: { devices: privileged ? [{ allow: true, access: "rwm" }] : DEVICE_RULES },
			maskedPaths: [...container.masked_paths],
			readonlyPaths: [...container.readonly_paths],
			...(container.seccomp === "required"
				? { seccomp: { defaultAction: "SCMP_ACT_ERRNO", architectures: ["SCMP_ARCH_X86_64"], syscalls: [] } }
				: {}),
		},
	};
}

const namespacePath = (type: string, { pod }: PolicyData): { path?: string } =>
	type === "pid" && !pod.share_pid ? {} : type === "mount" ? {} : { path: `/proc/${AGENT.podPid}/ns/${type}` };

const DEVICE_RULES = [
	{ allow: false, access: "rwm" },
	...(["1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:2"] as const).map((numbers) => {
		const [major = 0, minor = 0] = numbers.split(":").map(Number);
		return { allow: true, type: "c", major, minor, access: "rwm" };
	}),
	{ allow: true, type: "c", major: 136, access: "rwm" },
];
