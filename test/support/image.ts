/** OCI images for the tests, built from the host's static busybox: no registry, no docker. */
import { createHash } from "node:crypto";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { tar, type Member } from "./archive.ts";

const BUSYBOX_PATHS = ["/bin/busybox", "/usr/bin/busybox"];

/** An image as `ctr image import` takes it. */
export type TestImage = {
	/** Full name, for `ctr run`. */
	readonly name: string;
	/** Platform as `--platform` takes it. */
	readonly platform: string;
	/** The OCI layout, a tar file. */
	readonly file: string;
};

export type ImageRecipe = {
	readonly name: string;
	/** Go's name of the architecture, `amd64` when left out. */
	readonly architecture?: string;
	/** Of the lowest layer. */
	readonly members: readonly Member[];
	/** Further layers, from the lowest on. */
	readonly upper?: readonly (readonly Member[])[];
	/** Layers are stored as they are when left out. */
	readonly compression?: "gzip" | "zstd";
	/** Environment of the image, `NAME=value`. */
	readonly env?: readonly string[];
	readonly cwd?: string;
	/** User of the image, as `uid:gid` or names. */
	readonly user?: string;
	/** Program and arguments that are put before the command; none when left out. */
	readonly entrypoint?: readonly string[];
	/** The command; a shell when left out, none when empty. */
	readonly command?: readonly string[];
	/** The signal that stops a container, such as `SIGINT`. */
	readonly stopSignal?: string;
};

type Blob = { readonly digest: string; readonly size: number; readonly data: Buffer };

function blob(data: Buffer): Blob {
	return { digest: `sha256:${createHash("sha256").update(data).digest("hex")}`, size: data.length, data };
}

function json(value: unknown): Buffer {
	return Buffer.from(JSON.stringify(value));
}

function pack(archive: Buffer, compression: ImageRecipe["compression"]): Buffer {
	if (compression === "zstd") return execFileSync("zstd", ["--quiet", "--stdout"], { input: archive, maxBuffer: archive.length + 65_536 });
	return compression === "gzip" ? gzipSync(archive, { level: 1 }) : archive;
}

/**
 * Writes an image as an OCI image layout (image-layout.md of the OCI image specification, 1.0) into `dir`.
 * @returns what `ctr` needs to import and run it.
 */
export async function buildImage(dir: string, recipe: ImageRecipe): Promise<TestImage> {
	const architecture = recipe.architecture ?? "amd64";
	const archives = [recipe.members, ...(recipe.upper ?? [])].map(tar);
	const layers = archives.map((archive) => blob(pack(archive, recipe.compression)));
	const config = blob(
		json({
			architecture,
			os: "linux",
			config: {
				Env: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", ...(recipe.env ?? [])],
				...(recipe.entrypoint === undefined ? {} : { Entrypoint: recipe.entrypoint }),
				Cmd: recipe.command ?? ["/bin/sh"],
				...(recipe.stopSignal === undefined ? {} : { StopSignal: recipe.stopSignal }),
				WorkingDir: recipe.cwd ?? "/",
				User: recipe.user ?? "",
			},
			rootfs: { type: "layers", diff_ids: archives.map((archive) => blob(archive).digest) },
			history: [{ created_by: "containerd-shim-snp tests" }],
		}),
	);
	const manifest = blob(
		json({
			schemaVersion: 2,
			mediaType: "application/vnd.oci.image.manifest.v1+json",
			config: { mediaType: "application/vnd.oci.image.config.v1+json", digest: config.digest, size: config.size },
			layers: layers.map(({ digest, size }) => ({
				mediaType: `application/vnd.oci.image.layer.v1.tar${recipe.compression === undefined ? "" : `+${recipe.compression}`}`,
				digest,
				size,
			})),
		}),
	);
	const index = json({
		schemaVersion: 2,
		mediaType: "application/vnd.oci.image.index.v1+json",
		manifests: [
			{
				mediaType: "application/vnd.oci.image.manifest.v1+json",
				digest: manifest.digest,
				size: manifest.size,
				platform: { architecture, os: "linux" },
				annotations: { "io.containerd.image.name": recipe.name, "org.opencontainers.image.ref.name": "latest" },
			},
		],
	});
	// Two layers may be the same.
	const blobs = [...new Map([...layers, config, manifest].map((part) => [part.digest, part])).values()];
	const members: Member[] = [
		{ kind: "folder", path: "blobs/" },
		{ kind: "folder", path: "blobs/sha256/" },
		...blobs.map((part): Member => ({ kind: "file", path: `blobs/${part.digest.replace(":", "/")}`, data: part.data })),
		{ kind: "file", path: "index.json", data: index },
		{ kind: "file", path: "oci-layout", data: json({ imageLayoutVersion: "1.0.0" }) },
	];
	const file = join(dir, `${createHash("sha256").update(recipe.name).digest("hex").slice(0, 12)}.tar`);
	await writeFile(file, tar(members));
	return { name: recipe.name, platform: `linux/${architecture}`, file };
}

/** True for a 64-bit little-endian ELF program without an interpreter (no program header of type PT_INTERP, 3). */
function isStatic(elf: Buffer): boolean {
	if (elf.toString("latin1", 0, 6) !== "\x7fELF\x02\x01") return false;
	const start = Number(elf.readBigUInt64LE(32));
	const size = elf.readUInt16LE(54);
	const types = Array.from({ length: elf.readUInt16LE(56) }, (_, index) => elf.readUInt32LE(start + index * size));
	return !types.includes(3);
}

/**
 * The path of a static busybox on the host.
 * @throws Error with the package's name when there is none, or when it is not static.
 */
export function busyboxPath(): string {
	for (const path of BUSYBOX_PATHS) {
		try {
			if (isStatic(readFileSync(path))) return path;
		} catch {
			continue;
		}
	}
	throw new Error(`no static busybox in ${BUSYBOX_PATHS.join(", ")}. Install the package busybox-static`);
}

/** Busybox with all its applets as links, and the few files that a small system has. */
export function busyboxMembers(): Member[] {
	const busybox = busyboxPath();
	const applets = execFileSync(busybox, ["--list"], { encoding: "utf8" })
		.split("\n")
		.filter((name) => name !== "" && name !== "busybox");
	const folders = ["bin/", "dev/", "etc/", "home/", "proc/", "root/", "run/", "sys/", "usr/", "usr/bin/", "var/"];
	return [
		...folders.map((path): Member => ({ kind: "folder", path })),
		{ kind: "folder", path: "tmp/", mode: 0o1777 },
		{ kind: "file", path: "bin/busybox", data: readFileSync(busybox), mode: 0o755 },
		...applets.map((name): Member => ({ kind: "link", path: `bin/${name}`, target: "busybox" })),
		{ kind: "file", path: "etc/passwd", data: Buffer.from("root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1001:guest:/home:/bin/sh\n") },
		{ kind: "file", path: "etc/group", data: Buffer.from("root:x:0:\nguest:x:1001:\nextra:x:1002:guest\n") },
	];
}

/** The everyday image: busybox. */
export async function buildBusyboxImage(dir: string): Promise<TestImage> {
	return await buildImage(dir, { name: "docker.io/library/snp-busybox:latest", members: busyboxMembers(), env: ["FROM_IMAGE=yes"] });
}

/** The first 64 bytes of an ELF program for AArch64 (gABI, figure 4-3; e_machine 183): enough for execve to refuse it. */
export function foreignElf(): Buffer {
	const header = Buffer.alloc(120);
	header.write("\x7fELF\x02\x01\x01", 0, "latin1");
	header.writeUInt16LE(2, 16);
	header.writeUInt16LE(183, 18);
	header.writeUInt32LE(1, 20);
	header.writeBigUInt64LE(0x400078n, 24);
	header.writeBigUInt64LE(64n, 32);
	header.writeUInt16LE(64, 52);
	header.writeUInt16LE(56, 54);
	header.writeUInt16LE(1, 56);
	return header;
}

/** An image for arm64 whose only program can't run here. */
export async function buildForeignImage(dir: string): Promise<TestImage> {
	return await buildImage(dir, {
		name: "docker.io/library/snp-foreign:latest",
		architecture: "arm64",
		members: [
			{ kind: "folder", path: "bin/" },
			{ kind: "folder", path: "etc/" },
			{ kind: "folder", path: "proc/" },
			{ kind: "folder", path: "dev/" },
			{ kind: "folder", path: "sys/" },
			{ kind: "folder", path: "run/" },
			{ kind: "file", path: "bin/hello", data: foreignElf(), mode: 0o755 },
		],
	});
}
