/** Specifications of a pod's containers as containerd's CRI plugin writes them, and the network namespace that it makes for a pod. */
import { join } from "node:path";
import type { PrivateContainerd } from "../test/support/containerd.ts";
import { runOk } from "../test/support/process.ts";

const CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_NET_BIND_SERVICE"];
const MOUNTS = [
	{ destination: "/proc", type: "proc", source: "proc", options: ["nosuid", "noexec", "nodev"] },
	{ destination: "/dev", type: "tmpfs", source: "tmpfs", options: ["nosuid", "strictatime", "mode=755", "size=65536k"] },
	{ destination: "/dev/pts", type: "devpts", source: "devpts", options: ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
	{ destination: "/dev/mqueue", type: "mqueue", source: "mqueue", options: ["nosuid", "noexec", "nodev"] },
	{ destination: "/sys", type: "sysfs", source: "sysfs", options: ["nosuid", "noexec", "nodev", "ro"] },
];

/** What a container's specification says. */
export type ContainerSpec = {
	readonly podId: string;
	readonly kind: "sandbox" | "container";
	readonly args: readonly string[];
	/** Path of the network namespace. */
	readonly network: string;
	readonly cgroupsPath: string;
};

/** The document of a bundle's config.json (OCI runtime specification 1.0.2). */
export function ociSpec({ podId, kind, args, network, cgroupsPath }: ContainerSpec): object {
	return {
		ociVersion: "1.0.2",
		process: {
			user: { uid: 0, gid: 0 },
			args,
			env: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
			cwd: "/",
			noNewPrivileges: true,
			capabilities: { bounding: CAPABILITIES, effective: CAPABILITIES, permitted: CAPABILITIES },
		},
		root: { path: "rootfs" },
		...(kind === "sandbox" ? { hostname: podId.slice(0, 60) } : {}),
		mounts: MOUNTS,
		annotations: { "io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": podId },
		linux: {
			cgroupsPath,
			resources: { devices: [{ allow: false, access: "rwm" }], cpu: { shares: 2 } },
			namespaces: [...["pid", "ipc", "uts", "mount"].map((type) => ({ type })), { type: "network", path: network }],
			maskedPaths: ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
			readonlyPaths: ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
		},
	};
}

/** A network namespace as a pod gets it. Whoever makes it removes it. */
export class PodNamespace {
	/** Makes the place of all of them. */
	static async prepare(containerd: PrivateContainerd): Promise<void> {
		await (await PodNamespace.make(containerd, "first", false)).remove();
	}

	readonly path: string;
	readonly #containerd: PrivateContainerd;
	readonly #name: string;

	private constructor(containerd: PrivateContainerd, name: string) {
		this.#containerd = containerd;
		this.#name = name;
		this.path = join("/run/netns", name);
	}

	/** @param network whether there is an interface besides loopback: one end of a veth pair with an address and a route */
	static async make(containerd: PrivateContainerd, name: string, network: boolean): Promise<PodNamespace> {
		const lines = [
			`ip netns add ${name}`,
			`ip -n ${name} link set lo up`,
			...(network
				? [
						`ip -n ${name} link add eth0 type veth peer name peer0`,
						`ip -n ${name} addr add 10.89.0.2/16 dev eth0`,
						`ip -n ${name} link set peer0 up`,
						`ip -n ${name} link set eth0 up`,
						`ip -n ${name} route add default via 10.89.0.1`,
					]
				: []),
		];
		await runOk(containerd.inside("sh", "-e", "-c", lines.join("\n")));
		return new PodNamespace(containerd, name);
	}

	async remove(): Promise<void> {
		await runOk(this.#containerd.inside("ip", "netns", "del", this.#name));
	}
}
