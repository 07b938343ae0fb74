/** Volumes as kubelet lays them out on a node: folders and mounts below `pods/UID`, in the namespaces of a test's containerd. */
import {
	chmodSync,
	chownSync,
	existsSync,
	mkdirSync,
	readdirSync,
	readlinkSync,
	renameSync,
	rmSync,
	symlinkSync,
	truncateSync,
	unlinkSync,
	writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import type { PrivateContainerd } from "./containerd.ts";
import { run, runOk } from "./process.ts";

/** A key of a folder of configuration. */
export type Key = { readonly text: string; readonly mode?: number };

/** What a folder of configuration holds; a text alone has the mode 0644. */
export type Keys = Readonly<Record<string, string | Key>>;

let count = 0;

/**
 * Replaces a folder of configuration as a whole, as Kubernetes does: a new timestamped folder, `..data` renamed over the old link, links for
 * keys, removal of what is old.
 * @param gid owns the files, as with fsGroup
 */
export function publishKeys(folder: string, keys: Keys, gid = 0): void {
	mkdirSync(folder, { recursive: true });
	const name = `..2024_${++count}`;
	const data = join(folder, "..data");
	const old = existsSync(data) ? readlinkSync(data) : undefined;
	for (const [key, value] of Object.entries(keys)) {
		const { text, mode = 0o644 } = typeof value === "string" ? { text: value } : value;
		const path = join(folder, name, key);
		mkdirSync(dirname(path), { recursive: true });
		writeFileSync(path, text);
		chownSync(path, 0, gid);
		chmodSync(path, mode);
	}
	symlinkSync(name, `${data}_tmp`);
	renameSync(`${data}_tmp`, data);
	const tops = new Set(Object.keys(keys).map((key) => key.split("/")[0] ?? key));
	for (const top of tops) if (!existsSync(join(folder, top))) symlinkSync(`..data/${top}`, join(folder, top));
	for (const top of readdirSync(folder)) if (!top.startsWith("..") && !tops.has(top)) unlinkSync(join(folder, top));
	if (old !== undefined) rmSync(join(folder, old), { recursive: true });
}

/** The volumes of one pod. Its owner calls `release`. */
export class PodVolumeFolders {
	readonly #containerd: PrivateContainerd;
	readonly #dir: string;
	#mounts: string[] = [];
	#folders: string[] = [];
	#devices: string[] = [];
	#parts = 0;

	/** @param dir the pod's folder, whose path ends in `pods/UID` */
	constructor(containerd: PrivateContainerd, dir: string) {
		this.#containerd = containerd;
		this.#dir = dir;
	}

	/** A folder of configuration. @param plugin `configmap`, `secret`, `projected` or `downward-api` */
	configuration(plugin: string, name: string, keys: Keys, gid = 0): string {
		const path = join(this.#dir, "volumes", `kubernetes.io~${plugin}`, name);
		publishKeys(path, keys, gid);
		return path;
	}

	/** An emptyDir on the node's disk. */
	emptyDir(name: string, { mode = 0o777, gid = 0 } = {}): string {
		const path = join(this.#dir, "volumes/kubernetes.io~empty-dir", name);
		mkdirSync(path, { recursive: true });
		chownSync(path, 0, gid);
		chmodSync(path, mode);
		return path;
	}

	/** An emptyDir in memory. */
	async memory(name: string, sizeBytes: number): Promise<string> {
		const path = this.emptyDir(name);
		await this.#mount(path, "-t", "tmpfs", "-o", `size=${sizeBytes},mode=0777`, "tmpfs");
		return path;
	}

	/** Mounts a part of a volume for a container, as a subPath is. @param source the file or folder, as the namespaces see it */
	async part(volume: string, source: string, kind: "file" | "folder"): Promise<string> {
		const path = join(this.#dir, "volume-subpaths", volume, "app", String(this.#parts++));
		mkdirSync(dirname(path), { recursive: true });
		if (kind === "folder") mkdirSync(path);
		else writeFileSync(path, "");
		await this.#mount(path, "--bind", source);
		return path;
	}

	/** An emptyDir on a disk of the node that is as small as said. */
	async smallNode(name: string, sizeMib: number): Promise<string> {
		const path = this.emptyDir(name);
		await this.#mount(path, "-o", "loop", await this.image(`node-${name}`, sizeMib, "ext4"));
		await runOk(this.#containerd.inside("chmod", "777", path));
		return path;
	}

	/** Takes so much of the file system that a folder is on, beside what pods take. */
	async fillNode(path: string, sizeMib: number): Promise<void> {
		await runOk(this.#containerd.inside("fallocate", "--length", `${sizeMib}MiB`, join(path, "lost+found/others")));
	}

	/** An emptyDir of huge pages. */
	async huge(name: string, sizeBytes: number): Promise<string> {
		const path = this.emptyDir(name);
		await this.#mount(path, "-t", "hugetlbfs", "-o", `pagesize=2M,size=${sizeBytes},mode=0777`, "nodev");
		return path;
	}

	/** A disk image. @param type its file system; none: zeroes */
	async image(name: string, sizeMib: number, type?: "ext4"): Promise<string> {
		const path = join(this.#dir, `${name}.img`);
		writeFileSync(path, "");
		truncateSync(path, sizeMib * 1024 * 1024);
		if (type !== undefined) await runOk([`mkfs.${type}`, "-q", path]);
		return path;
	}

	/** A block device of the node. */
	async blockDevice(name: string, sizeMib: number): Promise<string> {
		const { stdout } = await runOk(["losetup", "--find", "--show", await this.image(name, sizeMib)]);
		const device = stdout.trim();
		this.#devices.push(device);
		return device;
	}

	/** Mounts a block device on the node. */
	async mountDevice(name: string, device: string): Promise<string> {
		const path = join(this.#dir, name);
		mkdirSync(path);
		await this.#mount(path, device);
		return path;
	}

	/**
	 * A volume of a CSI driver that has a file system on an image. For pods in VMs the driver does not mount it but says what is on it; else it does.
	 * @param mountInfo what the driver says of it, besides the device and a file system of type ext4; a text alone: all of the file
	 */
	async csi(name: string, image: string, forVm: boolean, mountInfo: object | string = {}): Promise<string> {
		const path = join(this.#dir, "volumes/kubernetes.io~csi", name, "mount");
		mkdirSync(path, { recursive: true });
		if (!forVm) {
			await this.#mount(path, "-o", "loop", image);
			return path;
		}
		const folder = join("/run/kata-containers/shared/direct-volumes", Buffer.from(path).toString("base64url"));
		const text =
			typeof mountInfo === "string" ? mountInfo : JSON.stringify({ "volume-type": "block", device: image, fstype: "ext4", ...mountInfo });
		await runOk(this.#containerd.inside("mkdir", "-p", folder));
		await runOk(this.#containerd.inside("sh", "-c", 'printf %s "$1" > "$2/mountInfo.json"', "sh", text, folder));
		this.#folders.push(folder);
		return path;
	}

	/** Makes a folder as the namespaces see it: inside a mount of theirs. */
	async makeFolder(path: string): Promise<void> {
		await runOk(this.#containerd.inside("mkdir", "-p", "-m", "777", path));
	}

	async #mount(path: string, ...options: readonly string[]): Promise<void> {
		await runOk(this.#containerd.inside("mount", ...options, path));
		this.#mounts.push(path);
	}

	/** Unmounts what was mounted, used or not, and frees the devices. */
	async release(): Promise<void> {
		for (const path of this.#mounts.reverse()) await run(this.#containerd.inside("umount", "-l", path));
		for (const folder of this.#folders) await run(this.#containerd.inside("rm", "-r", folder));
		for (const device of this.#devices) await run(["losetup", "--detach", device]);
		[this.#mounts, this.#folders, this.#devices] = [[], [], []];
	}
}
