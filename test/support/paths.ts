/** Where the built programs, the guest's parts and the containerds for tests are. See docs/contracts.md, "Built artefacts". */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

/** The repository's root folder, with a trailing slash. */
export const repositoryDir: string = fileURLToPath(new URL("../../", import.meta.url));
/** Folder of `containerd-shim-snp-v2`, `snpd`, `snpctl`, `ch-qemu`. */
export const distBinDir: string = join(repositoryDir, "dist/bin");
/** Folder of the guest's `vmlinux` and `initramfs`. */
export const distShareDir: string = join(repositoryDir, "dist/share");

/** The containerd lines that tests know, oldest first, as scripts/fetch-containerd.sh names them. `2` is the 2.x of Debian. */
export const containerdVersions = ["1.6", "1.7", "2", "2.4"] as const;
export type ContainerdVersion = (typeof containerdVersions)[number];

/** Those that setup fetches and the end-to-end tests run on. */
export const everydayVersions: readonly ContainerdVersion[] = ["1.6", "2"];

/** True for the lines before 2.0, whose configuration and plugins have other names. */
export function isFirstGeneration(version: ContainerdVersion): boolean {
	return version.startsWith("1.");
}

/** True when `text` names a containerd line that the tests know. */
export function isContainerdVersion(text: string): text is ContainerdVersion {
	return (containerdVersions as readonly string[]).includes(text);
}

/** The cache folder of scripts/setup.sh, by the rule of docs/contracts.md. */
export function cacheDir(env: NodeJS.ProcessEnv = process.env): string {
	const own = env["CONTAINERD_SHIM_SNP_CACHE"];
	if (own !== undefined && own !== "") return own;
	const xdg = env["XDG_CACHE_HOME"];
	if (xdg !== undefined && xdg !== "") return join(xdg, "containerd-shim-snp");
	return join(env["HOME"] ?? "/root", ".cache/containerd-shim-snp");
}

/**
 * The folder with `containerd` and `ctr` of one line.
 * @throws Error when setup has not put them there.
 */
export function containerdBinDir(version: ContainerdVersion): string {
	const dir = join(cacheDir(), "containerd", version, "bin");
	for (const program of ["containerd", "ctr"]) {
		if (!existsSync(join(dir, program))) {
			throw new Error(
				`${program} of containerd ${version} is missing: ${join(dir, program)}. Run scripts/fetch-containerd.sh ${version}, or set CONTAINERD_SHIM_SNP_CACHE to the cache folder`,
			);
		}
	}
	return dir;
}

/**
 * Checks that `npm run build` and the guest's build left everything that a VM needs.
 * @throws Error that names the first missing file and the command that makes it.
 */
export function requireBuilt(): void {
	const wanted: readonly (readonly [string, string])[] = [
		[join(distBinDir, "containerd-shim-snp-v2"), "npm run build"],
		[join(distBinDir, "snpd"), "npm run build"],
		[join(distBinDir, "ch-qemu"), "npm run build"],
		[join(distShareDir, "vmlinux"), "scripts/setup.sh"],
		[join(distShareDir, "initramfs"), "scripts/setup.sh"],
	];
	for (const [path, command] of wanted) {
		if (!existsSync(path)) throw new Error(`${path} is missing. Run: ${command}`);
	}
}
