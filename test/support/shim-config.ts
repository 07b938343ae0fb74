/** The shim's configuration file for tests, the demo and the bench. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { distBinDir, distShareDir } from "./paths.ts";

/** What a test may set; everything else has the shim's own defaults. */
export type ShimConfig = {
	/** The VMM; when left out the one that `SNP_TEST_VMM` names, else `dist/bin/ch-qemu`. */
	readonly hypervisor?: string;
	/** The guest's kernel; `dist/share/vmlinux` when left out. */
	readonly kernel?: string;
	/** The guest's first file system; `dist/share/initramfs` when left out. */
	readonly image?: string;
	/** How long a guest may take until its agent answers, in milliseconds. */
	readonly bootTimeoutMs?: number;
	/** Processors that a running pod may grow to. */
	readonly maxVcpus?: number;
	/** Memory that a running pod may grow by, in MiB. */
	readonly hotplugMemoryMib?: number;
	/** Where built images are kept; a folder of the test's containerd when left out. */
	readonly cacheDir?: string;
	/** Whether images come in layers; true when left out. */
	readonly layers?: boolean;
	/** Whether folders are shared by virtio-fs. */
	readonly shareFolders?: boolean;
	/** Text put at the end of the file as it is, for faulty files. */
	readonly append?: string;
};

/** Where distributions have virtiofsd: that of QEMU up to 7.2, that in Rust. */
const VIRTIOFSD: readonly string[] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];
/** TCG on two loaded cores needs longer than the hardware that the shim's default is for. */
const BOOT_TIMEOUT_MS = 60_000;
/** A VM in an emulated machine needs longer still. */
const NESTED_BOOT_TIMEOUT_MS = 240_000;

/** Where the files of writable disks are, beside the built images. */
export const scratchDir = (cacheDir: string): string => `${cacheDir}.scratch`;

/** The text of a configuration file whose state folder is `stateDir` and whose built images go to `cacheDir`. */
export function shimConfigToml(stateDir: string, cacheDir: string, config: ShimConfig): string {
	const vmm = process.env["SNP_TEST_VMM"];
	return `state_dir = ${JSON.stringify(stateDir)}
[hypervisor]
path = ${JSON.stringify(config.hypervisor ?? vmm ?? join(distBinDir, "ch-qemu"))}
[guest]
kernel = ${JSON.stringify(config.kernel ?? join(distShareDir, "vmlinux"))}
image = ${JSON.stringify(config.image ?? join(distShareDir, "initramfs"))}
max_vcpus = ${config.maxVcpus ?? 0}
hotplug_memory_mib = ${config.hotplugMemoryMib ?? 0}
[storage]
cache_dir = ${JSON.stringify(config.cacheDir ?? cacheDir)}
layers = ${config.layers ?? true}
scratch_dir = ${JSON.stringify(scratchDir(cacheDir))}
share_folders = ${config.shareFolders ?? false}
virtiofsd = ${JSON.stringify(VIRTIOFSD.find((path) => existsSync(path)) ?? "virtiofsd")}
[timeouts]
boot_ms = ${config.bootTimeoutMs ?? (vmm === undefined ? BOOT_TIMEOUT_MS : NESTED_BOOT_TIMEOUT_MS)}
${config.append ?? ""}
`;
}
