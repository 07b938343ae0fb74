/**
 * The part of the OCI runtime specification (v1.2, config.md and config-linux.md) that the shim reads from a bundle, validated once on entry.
 * Fields that are not listed are dropped: they have no meaning inside a VM, or none that the agent's protocol carries.
 */

import { readFileSync } from "node:fs";
import { join } from "node:path";

import * as v from "valibot";

import { errnoOf, messageOf, ShimError } from "../base/errors.ts";

const MAX_SPEC_BYTES = 4 * 1024 * 1024;

const strings = v.array(v.string());
const uint32 = v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(0xffff_ffff));
const integer = v.pipe(v.number(), v.integer());
const unsigned = v.pipe(v.number(), v.integer(), v.minValue(0));
const maybe = <T extends v.GenericSchema>(schema: T) => v.optional(v.nullable(schema));

const capabilities = v.object({
	bounding: maybe(strings),
	effective: maybe(strings),
	inheritable: maybe(strings),
	permitted: maybe(strings),
	ambient: maybe(strings),
});

/** `process` of config.json, and the whole of an exec's specification. */
export const processSchema = v.object({
	terminal: maybe(v.boolean()),
	consoleSize: maybe(v.object({ height: uint32, width: uint32 })),
	user: maybe(
		v.object({
			uid: v.optional(uint32, 0),
			gid: v.optional(uint32, 0),
			additionalGids: maybe(v.array(uint32)),
			username: maybe(v.string()),
		}),
	),
	// Go leaves an empty list out.
	args: v.pipe(v.nullish(strings, []), v.minLength(1, "has no command: give the image or the pod one")),
	env: maybe(strings),
	cwd: v.string(),
	capabilities: maybe(capabilities),
	rlimits: maybe(v.array(v.object({ type: v.string(), hard: unsigned, soft: unsigned }))),
	noNewPrivileges: maybe(v.boolean()),
	oomScoreAdj: maybe(integer),
});

// Loose, here and below: what is not listed is not dropped silently, but named by `resourcesLeftOut`.
const linuxMemory = v.looseObject({
	limit: maybe(integer),
	reservation: maybe(integer),
	swap: maybe(integer),
	swappiness: maybe(unsigned),
	disableOOMKiller: maybe(v.boolean()),
});

const linuxCpu = v.looseObject({
	shares: maybe(unsigned),
	quota: maybe(integer),
	period: maybe(unsigned),
	cpus: maybe(v.string()),
	mems: maybe(v.string()),
});

const deviceRule = v.object({
	allow: v.optional(v.boolean(), false),
	type: maybe(v.string()),
	major: maybe(integer),
	minor: maybe(integer),
	access: maybe(v.string()),
});

/** `linux.resources`, and the whole of an Update's resources. */
export const resourcesSchema = v.looseObject({
	devices: maybe(v.array(deviceRule)),
	memory: maybe(linuxMemory),
	cpu: maybe(linuxCpu),
	pids: maybe(v.object({ limit: maybe(integer) })),
	blockIO: maybe(v.looseObject({ weight: maybe(v.pipe(unsigned, v.maxValue(0xffff))) })),
	hugepageLimits: maybe(v.array(v.object({ pageSize: v.string(), limit: unsigned }))),
	unified: maybe(v.record(v.string(), v.string())),
});

const seccomp = v.object({
	defaultAction: v.string(),
	defaultErrnoRet: maybe(uint32),
	architectures: maybe(strings),
	flags: maybe(strings),
	syscalls: maybe(
		v.array(
			v.object({
				names: strings,
				action: v.string(),
				errnoRet: maybe(uint32),
				args: maybe(v.array(v.object({ index: unsigned, value: unsigned, valueTwo: maybe(unsigned), op: v.string() }))),
			}),
		),
	),
});

const device = v.object({
	path: v.string(),
	type: v.string(),
	major: maybe(integer),
	minor: maybe(integer),
	fileMode: maybe(uint32),
	uid: maybe(uint32),
	gid: maybe(uint32),
});

const linux = v.object({
	sysctl: maybe(v.record(v.string(), v.string())),
	resources: maybe(resourcesSchema),
	cgroupsPath: maybe(v.string()),
	namespaces: maybe(v.array(v.object({ type: v.string(), path: maybe(v.string()) }))),
	devices: maybe(v.array(device)),
	seccomp: maybe(seccomp),
	rootfsPropagation: maybe(v.string()),
	maskedPaths: maybe(strings),
	readonlyPaths: maybe(strings),
	uidMappings: maybe(v.array(v.unknown())),
});

const mount = v.object({
	destination: v.pipe(v.string(), v.startsWith("/", "is not an absolute path")),
	type: maybe(v.string()),
	source: maybe(v.string()),
	options: maybe(strings),
});

/** A bundle's config.json. */
export const specSchema = v.object({
	ociVersion: v.string(),
	process: processSchema,
	root: v.object({ path: v.string(), readonly: maybe(v.boolean()) }),
	hostname: maybe(v.string()),
	mounts: maybe(v.array(mount)),
	annotations: maybe(v.record(v.string(), v.string())),
	linux: maybe(linux),
	/** By the moment at which they should run. */
	hooks: maybe(v.record(v.string(), maybe(v.array(v.object({ path: v.string() }))))),
});

export type OciProcess = v.InferOutput<typeof processSchema>;
export type OciResources = v.InferOutput<typeof resourcesSchema>;
export type OciSpec = v.InferOutput<typeof specSchema>;
/** The part of a specification that decides what its pod is. */
export type PodSpec = Pick<OciSpec, "hostname" | "annotations" | "linux">;
export type OciDevice = v.InferOutput<typeof device>;
export type OciMount = v.InferOutput<typeof mount>;

/** The hooks of a specification (config.md, POSIX-platform Hooks) in words. None is run: they are programs of the host that want to see the container's namespaces there. */
export function hooksLeftOut(spec: OciSpec): string[] {
	return Object.entries(spec.hooks ?? {}).flatMap(([moment, hooks]) => (hooks ?? []).map(({ path }) => `${moment}: ${path}`));
}

/**
 * Validates parsed JSON against a schema of this file.
 * @param what names the origin for the message: a path, or the request that carried it
 * @throws ShimError `spec.invalid` with the path of the first field that is wrong
 */
export function parseSpec<T extends v.GenericSchema>(schema: T, value: unknown, what: string): v.InferOutput<T> {
	const result = v.safeParse(schema, value);
	if (result.success) return result.output;
	const issue = result.issues[0];
	const path = v.getDotPath(issue) ?? "the whole document";
	throw new ShimError("spec.invalid", `${what}: ${path}: ${issue.message}`);
}

/**
 * Parses JSON text that came from containerd.
 * @throws ShimError `spec.invalid` when it is not JSON
 */
export function parseJson(text: string, what: string): unknown {
	try {
		return JSON.parse(text) as unknown;
	} catch (error) {
		throw new ShimError("spec.invalid", `${what} is not JSON: ${messageOf(error)}`, { cause: error });
	}
}

/**
 * Reads and validates a bundle's config.json (at most 4 MiB).
 * @throws ShimError `spec.invalid` that names the file and the field
 */
export async function readSpec(bundle: string): Promise<OciSpec> {
	const path = join(bundle, "config.json");
	let text: string;
	try {
		// At once: it lies on containerd's tmpfs, and the four turns of reading it elsewhere cost ten times as much.
		text = readFileSync(path, "utf8");
	} catch (error) {
		const why = errnoOf(error) === "ENOENT" ? "does not exist" : messageOf(error);
		throw new ShimError("spec.invalid", `the bundle's specification ${path} can't be read: ${why}`, { cause: error });
	}
	if (text.length > MAX_SPEC_BYTES) {
		throw new ShimError("spec.invalid", `${path} has ${text.length} bytes; at most ${MAX_SPEC_BYTES} are taken`);
	}
	return parseSpec(specSchema, parseJson(text, path), path);
}
