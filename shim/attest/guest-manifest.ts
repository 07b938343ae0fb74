/**
 * The guest's manifest: what the files that a VM is started from were made of. It ties a launch measurement to sources: the measurement follows from the files'
 * hashes, the manifest says what they were built from, and a build of the same inputs gives the same bytes (docs/confidential.md).
 */

import * as v from "valibot";

import { messageOf, ShimError } from "../base/errors.ts";

const sha256 = v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/u, "is no SHA-256 in hexadecimal"));
const text = v.pipe(v.string(), v.maxLength(4096));

const fileSchema = v.strictObject({
	/** A path in the repository, or a file's own name. */
	name: text,
	sha256,
});

const partSchema = v.strictObject({
	outputs: v.pipe(v.array(v.strictObject({ name: text, sha256, bytes: v.pipe(v.number(), v.integer(), v.minValue(1)) })), v.maxLength(64)),
	inputs: v.pipe(v.array(fileSchema), v.maxLength(10_000)),
	/** Compilers and packages, each in one line. */
	tools: v.pipe(v.array(text), v.maxLength(64)),
	/** What `build-*.sh` calls these inputs with this recipe. */
	recipe: text,
});

const manifestSchema = v.strictObject({
	version: v.literal(1),
	source: v.strictObject({
		/** The commit; null when the sources were no git checkout. */
		revision: v.nullable(v.pipe(v.string(), v.regex(/^[0-9a-f]{40}$/u, "is no commit"))),
		/** Inputs that are not as in that commit. */
		changed: v.array(text),
	}),
	/** The command line of a VM under the default configuration. */
	commandLine: text,
	kernel: partSchema,
	initramfs: partSchema,
});

/** What the guest was made of. */
export type GuestManifest = v.InferOutput<typeof manifestSchema>;
/** One of its parts: files made from files. */
export type ManifestPart = GuestManifest["kernel"];

/** The manifest's name beside the guest's files. */
export const MANIFEST_FILE = "guest-manifest.json";
export const MAX_MANIFEST_BYTES = 4 * 1024 * 1024;

/** Reads a manifest. @throws ShimError `attest.manifest` that names the place */
export function parseManifest(json: string, source: string): GuestManifest {
	let document: unknown;
	try {
		document = JSON.parse(json);
	} catch (error) {
		throw new ShimError("attest.manifest", `${source} is no manifest: ${messageOf(error)}`);
	}
	const checked = v.safeParse(manifestSchema, document);
	if (checked.success) return checked.output;
	const issue = checked.issues[0];
	throw new ShimError("attest.manifest", `${source} is no manifest: ${v.getDotPath(issue) ?? "it"}: ${issue.message}`);
}

/** SHA-256 of one of the manifest's outputs. @throws ShimError `attest.manifest` when it has none of that name */
export function outputHash(part: ManifestPart, name: string, source: string): Buffer {
	const output = part.outputs.find((one) => one.name === name);
	if (output === undefined)
		throw new ShimError("attest.manifest", `${source} names no ${name}: it has ${part.outputs.map((one) => one.name).join(", ")}`);
	return Buffer.from(output.sha256, "hex");
}
