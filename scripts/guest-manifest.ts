/**
 * Writes what the guest was made of: `node --import tsx scripts/guest-manifest.ts KERNEL_FOLDER INITRAMFS_FOLDER SAMPLE_FOLDER OUTPUT_FOLDER` leaves
 * `guest-manifest.json` and `guest-sbom.json` (CycloneDX) in OUTPUT_FOLDER. Equal sources give equal files.
 */

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { basename, isAbsolute, join } from "node:path";
import process from "node:process";

import { MANIFEST_FILE, parseManifest } from "../shim/attest/guest-manifest.ts";
import type { GuestManifest, ManifestPart } from "../shim/attest/guest-manifest.ts";
import { messageOf } from "../shim/base/errors.ts";
import { defaultConfig } from "../shim/config/schema.ts";
import { kernelParameters } from "../shim/pod/plan.ts";
import { REPOSITORY } from "./command.ts";
import { billOfMaterials } from "./guest/sbom.ts";
import type { CargoMetadata, DebianPart } from "./guest/sbom.ts";

const SBOM_FILE = "guest-sbom.json";
const AGENT = "snp-agent";
/** The image of sample mode: the same sources with one feature more. */
const SAMPLE_INITRAMFS = "initramfs-sample-insecure";
const TARGET = "x86_64-unknown-linux-gnu";
const KERNEL_ARCHIVE = process.env["GUEST_KERNEL_SOURCE"] ?? "/usr/src/linux-source-6.12.tar.xz";
const KERNEL_PACKAGE = "linux-source-6.12";
const LIBRARY_FOLDER = process.env["LIBSECCOMP_LIB_PATH"] ?? "/usr/lib/x86_64-linux-gnu";
const KERNEL_INPUTS = ["guest/build-kernel.sh", "guest/kernel/check-config.sh", "guest/kernel/fragment.config", KERNEL_ARCHIVE];
const MAX_OUTPUT_BYTES = 64 * 1024 * 1024;

function output(program: string, args: readonly string[]): string {
	return execFileSync(program, args, {
		cwd: REPOSITORY,
		encoding: "utf8",
		maxBuffer: MAX_OUTPUT_BYTES,
		stdio: ["ignore", "pipe", "pipe"],
	}).trim();
}

/** What a program prints; undefined when it fails. */
function attempt(program: string, args: readonly string[]): string | undefined {
	try {
		return output(program, args);
	} catch {
		return undefined;
	}
}

const digests = new Map<string, string>();

/** The kernel's archive is large and named twice: every file is read once. */
function sha256(path: string): string {
	const digest = digests.get(path) ?? createHash("sha256").update(readFileSync(path)).digest("hex");
	digests.set(path, digest);
	return digest;
}

const debianVersion = (name: string): string | undefined => attempt("dpkg-query", ["--show", "--showformat", "${Version}", name]);

function inputs(paths: readonly string[]): ManifestPart["inputs"] {
	return paths.map((path) => ({
		name: isAbsolute(path) ? basename(path) : path,
		sha256: sha256(isAbsolute(path) ? path : join(REPOSITORY, path)),
	}));
}

function outputs(folder: string, names: readonly string[]): ManifestPart["outputs"] {
	return names
		.map((name) => ({ name, path: join(folder, name) }))
		.filter(({ path }) => existsSync(path))
		.map(({ name, path }) => ({ name, sha256: sha256(path), bytes: statSync(path).size }));
}

/** Packages by name and version, those that are not installed left out. */
function packages(names: readonly string[]): string[] {
	return names.flatMap((name) => {
		const version = debianVersion(name);
		return version === undefined ? [] : [`${name} ${version}`];
	});
}

function source(paths: readonly string[]): GuestManifest["source"] {
	const revision = attempt("git", ["rev-parse", "--verify", "HEAD"]);
	if (revision === undefined) return { revision: null, changed: [] };
	const own = paths.filter((path) => !isAbsolute(path));
	const changed = attempt("git", ["status", "--porcelain", "--untracked-files=all", "--", ...own]) ?? "";
	return { revision, changed: changed.split("\n").flatMap((line) => (line === "" ? [] : [line.trim().replace(/^\S+\s+/u, "")])) };
}

function bill(manifest: GuestManifest): Record<string, unknown> {
	const { version } = JSON.parse(readFileSync(join(REPOSITORY, "package.json"), "utf8")) as { version: string };
	const metadata = output("cargo", ["metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET]);
	const library = (name: string, file: string, packageName: string, license: string): DebianPart => ({
		type: "library",
		name,
		packageName,
		version: debianVersion(packageName),
		sha256: sha256(join(LIBRARY_FOLDER, file)),
		license,
	});
	return billOfMaterials({
		version,
		metadata: JSON.parse(metadata) as CargoMetadata,
		lock: readFileSync(join(REPOSITORY, "Cargo.lock"), "utf8"),
		agent: AGENT,
		rustc: output("rustc", ["--version"]),
		debian: [
			{
				type: "operating-system",
				name: "linux",
				packageName: KERNEL_PACKAGE,
				version: debianVersion(KERNEL_PACKAGE),
				sha256: sha256(KERNEL_ARCHIVE),
				license: "GPL-2.0-only WITH Linux-syscall-note",
			},
			library("libseccomp", "libseccomp.a", "libseccomp-dev", "LGPL-2.1-only"),
			library("glibc", "libc.a", "libc6-dev", "LGPL-2.1-or-later"),
		],
		outputs: [...manifest.kernel.outputs, ...manifest.initramfs.outputs],
	});
}

function replace(path: string, document: unknown): void {
	const staged = `${path}.${process.pid}`;
	writeFileSync(staged, `${JSON.stringify(document, undefined, "\t")}\n`);
	renameSync(staged, path);
}

function main(): void {
	const [kernelFolder, initramfsFolder, sampleFolder, target] = process.argv.slice(2);
	if (kernelFolder === undefined || initramfsFolder === undefined || sampleFolder === undefined || target === undefined)
		throw new Error("usage: guest-manifest.ts KERNEL_FOLDER INITRAMFS_FOLDER SAMPLE_FOLDER OUTPUT_FOLDER");
	const agentInputs = output("guest/build-initramfs.sh", ["--inputs"]).split("\n");
	const manifest: GuestManifest = {
		version: 1,
		source: source([...KERNEL_INPUTS, ...agentInputs]),
		commandLine: kernelParameters(defaultConfig()),
		kernel: {
			outputs: outputs(kernelFolder, ["vmlinux", "bzImage"]),
			inputs: inputs(KERNEL_INPUTS),
			tools: [...["gcc", "ld"].map((tool) => output(tool, ["--version"]).split("\n", 1)[0] ?? tool), ...packages([KERNEL_PACKAGE])],
			recipe: basename(kernelFolder),
		},
		initramfs: {
			outputs: [
				...outputs(initramfsFolder, ["initramfs", AGENT]),
				...outputs(sampleFolder, ["initramfs"]).map((output) => ({ ...output, name: SAMPLE_INITRAMFS })),
			],
			inputs: inputs(agentInputs),
			tools: [output("rustc", ["--version"]), ...packages(["libseccomp-dev", "libc6-dev"])],
			recipe: basename(initramfsFolder),
		},
	};
	mkdirSync(target, { recursive: true });
	parseManifest(JSON.stringify(manifest), MANIFEST_FILE);
	replace(join(target, MANIFEST_FILE), manifest);
	replace(join(target, SBOM_FILE), bill(manifest));
	console.log(join(target, MANIFEST_FILE));
}

try {
	main();
} catch (error) {
	console.error(`guest-manifest: ${messageOf(error)}`);
	process.exitCode = 1;
}
