/**
 * Initdata (Confidential Containers, "Initdata specification" 0.1.0): what a confidential pod's owner gives the guest besides its images. A pod
 * carries it as an annotation, base64(gzip(TOML)); a hash of the TOML is the launch's HOST_DATA, by which the guest knows that the host changed nothing.
 */

import { createHash } from "node:crypto";
import { gunzipSync, gzipSync } from "node:zlib";

import { parse, TomlError } from "smol-toml";
import * as v from "valibot";

import { messageOf, ShimError } from "../base/errors.ts";
import { structureLength } from "./toml-structure.ts";

/** The annotation of a pod that holds its initdata (Kata Containers' name). */
export const INITDATA_ANNOTATION = "io.katacontainers.config.hypervisor.cc_init_data";
/** The entry of `[data]` that is the agent's policy. */
export const POLICY_ENTRY = "policy.rego";
/** Bounds of both sides (docs/contracts.md). */
export const MAX_INITDATA_GZIP_BYTES = 1024 * 1024;
export const MAX_INITDATA_BYTES = 4 * 1024 * 1024;
/** What may stand outside of texts and comments: entries are texts, and a parser that has to make millions of keys keeps everybody waiting. */
const MAX_STRUCTURE = 64 * 1024;

const VERSION = "0.1.0";
const HOST_DATA_BYTES = 32;
const ALGORITHMS = ["sha256", "sha384", "sha512"] as const;

/** The hash by which the guest knows its initdata. */
export type InitdataAlgorithm = (typeof ALGORITHMS)[number];

/** Initdata as its parts; `data` has the entries by their names, `policy.rego` among them. */
export interface InitdataParts {
	readonly algorithm: InitdataAlgorithm;
	readonly data: Readonly<Record<string, string>>;
}

/** Initdata as it travels. */
export interface Initdata extends InitdataParts {
	/** The text over which the digest goes, byte by byte. */
	readonly toml: Uint8Array;
	/** gzip of it: what the guest's disk holds. */
	readonly gzip: Uint8Array;
	/** 64 hexadecimal digits: the hash of `toml`, cut or filled with zeros to 32 bytes. */
	readonly hostData: string;
}

const schema = v.strictObject({
	version: v.literal(VERSION, `is not "${VERSION}"`),
	algorithm: v.picklist(ALGORITHMS, `is none of ${ALGORITHMS.join(", ")}`),
	data: v.record(v.string(), v.string("is not a text")),
});

/**
 * Makes initdata.
 * @throws ShimError `initdata.invalid` when it is larger than the guest takes
 */
export function makeInitdata({ algorithm, data }: InitdataParts): Initdata {
	const entries = Object.entries(data).map(([name, text]) => `${JSON.stringify(name)} = ${tomlText(text)}\n`);
	const toml = Buffer.from(`version = "${VERSION}"\nalgorithm = "${algorithm}"\n\n[data]\n${entries.join("")}`);
	if (toml.length > MAX_INITDATA_BYTES) throw tooLarge(`${toml.length} bytes`, MAX_INITDATA_BYTES);
	const gzip = gzipSync(toml, { level: 9 });
	if (gzip.length > MAX_INITDATA_GZIP_BYTES) throw tooLarge(`${gzip.length} bytes when packed`, MAX_INITDATA_GZIP_BYTES);
	return { algorithm, data, toml, gzip, hostData: initdataDigest(toml, algorithm) };
}

/** Initdata as the annotation's value. */
export function encodeInitdata({ gzip }: Pick<Initdata, "gzip">): string {
	return Buffer.from(gzip).toString("base64");
}

/**
 * Reads an annotation's value.
 * @throws ShimError `initdata.invalid` that names what is wrong with it
 */
export function decodeInitdata(annotation: string): Initdata {
	if (annotation.length > Math.ceil(MAX_INITDATA_GZIP_BYTES / 3) * 4) {
		throw tooLarge(`${annotation.length} characters of base64`, MAX_INITDATA_GZIP_BYTES);
	}
	const text = annotation.replaceAll(/\s/gu, "");
	if (!/^[A-Za-z0-9+/]+={0,2}$/u.test(text) || text.length % 4 !== 0) throw invalid("is no base64 (RFC 4648, with padding)");
	const gzip = Buffer.from(text, "base64");
	const toml = unpackInitdata(gzip);
	const parts = parseInitdata(toml);
	return { ...parts, toml, gzip, hostData: initdataDigest(toml, parts.algorithm) };
}

/**
 * Reads the TOML text of initdata.
 * @throws ShimError `initdata.invalid` that names the place
 */
export function parseInitdata(toml: Uint8Array): InitdataParts {
	let document: unknown;
	try {
		const text = new TextDecoder("utf-8", { fatal: true }).decode(toml);
		if (structureLength(text) > MAX_STRUCTURE)
			throw invalid(`has more than ${MAX_STRUCTURE} characters outside of texts and comments: its entries are texts, few and named`);
		document = parse(text);
	} catch (error) {
		if (error instanceof ShimError) throw error;
		const place = error instanceof TomlError ? `line ${error.line}, column ${error.column}: ` : "";
		throw invalid(`holds no TOML: ${place}${messageOf(error).split("\n")[0] ?? ""}`, error);
	}
	const checked = v.safeParse(schema, document);
	if (checked.success) return { algorithm: checked.output.algorithm, data: checked.output.data };
	const issue = checked.issues[0];
	throw invalid(`${v.getDotPath(issue) ?? "the document"}: ${issue.message}`);
}

/** The digest that becomes HOST_DATA: 64 hexadecimal digits. */
export function initdataDigest(toml: Uint8Array, algorithm: InitdataAlgorithm): string {
	const hash = createHash(algorithm).update(toml).digest();
	return hash
		.subarray(0, HOST_DATA_BYTES)
		.toString("hex")
		.padEnd(2 * HOST_DATA_BYTES, "0");
}

/** The TOML text of packed initdata. @throws ShimError `initdata.invalid` */
export function unpackInitdata(gzip: Uint8Array): Buffer {
	try {
		return gunzipSync(gzip, { maxOutputLength: MAX_INITDATA_BYTES });
	} catch (error) {
		if (error instanceof RangeError) throw tooLarge(`more than ${MAX_INITDATA_BYTES} bytes when unpacked`, MAX_INITDATA_BYTES);
		throw invalid(`is not packed with gzip: ${messageOf(error)}`, error);
	}
}

/** As lines where TOML can have them unchanged (TOML 1.0, "Literal strings"), else escaped. */
function tomlText(text: string): string {
	const literal = !text.includes("'''") && !text.endsWith("'") && !/[\u0000-\u0008\u000b-\u001f\u007f]/u.test(text);
	return literal ? `'''\n${text}'''` : JSON.stringify(text).replaceAll("\u007f", "\\u007f");
}

function invalid(problem: string, cause?: unknown): ShimError {
	return new ShimError("initdata.invalid", `the initdata ${problem}`, { cause });
}

function tooLarge(size: string, most: number): ShimError {
	return new ShimError("initdata.invalid", `the initdata has ${size}, at most ${most} are taken`);
}
