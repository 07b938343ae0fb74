/** `snpctl policy`: makes a pod's policy, tries it, and explains what it denies. */

import { basename } from "node:path";
import { stderr, stdout } from "node:process";

import { parseAllDocuments } from "yaml";

import { ShimError } from "../base/errors.ts";
import { ALLOW_NOTHING, generatePolicy } from "../policy/generate.ts";
import type { GeneratedPolicy } from "../policy/generate.ts";
import { encodeInitdata, INITDATA_ANNOTATION, makeInitdata, POLICY_ENTRY } from "../policy/initdata.ts";
import type { Initdata, InitdataAlgorithm } from "../policy/initdata.ts";
import type { ManifestFile, PodSource } from "../policy/manifest.ts";
import { check } from "./policy-check.ts";
import { explain } from "./policy-explain.ts";
import { allowed, lookUpImages, manifestFiles, POLICY_USAGE, policyArguments, wantedPods } from "./policy-input.ts";
import type { PolicyValues } from "./policy-input.ts";
import { readInput } from "./read-input.ts";

const MAX_ENTRY_BYTES = 4 * 1024 * 1024;
/** Kubernetes' bound of all annotations of an object. */
const MAX_ANNOTATIONS_BYTES = 256 * 1024;
const ALGORITHMS: readonly string[] = ["sha256", "sha384", "sha512"];

/**
 * Runs `snpctl policy` with the words after it.
 * @returns the exit status
 * @throws ShimError
 */
export async function policy(args: readonly string[]): Promise<number> {
	const { values, positionals } = policyArguments(args);
	const [command, ...words] = positionals;
	if (values.help === true) {
		stdout.write(`${POLICY_USAGE}\n`);
		return 0;
	}
	if (command === "generate") return await generate(words, values);
	if (command === "check") return await check(words, values);
	if (command === "explain") return await explain(words, values);
	throw new ShimError("call.invalid", `unknown command: policy ${positionals.join(" ")}`, { remedy: POLICY_USAGE });
}

interface Made {
	readonly pod: PodSource;
	readonly policy: GeneratedPolicy;
	readonly initdata: Initdata;
}

async function generate(names: readonly string[], values: PolicyValues): Promise<number> {
	const { algorithm } = values;
	if (!ALGORITHMS.includes(algorithm)) throw new ShimError("call.invalid", `--algorithm ${algorithm}: is none of ${ALGORITHMS.join(", ")}`);
	const files = await manifestFiles(names);
	const { manifest, pods } = wantedPods(files, values.pod);
	const allow = { ...ALLOW_NOTHING, ...allowed(values) };
	const further = Object.fromEntries(await Promise.all((values.data ?? []).map(entryOf)));
	const images = await lookUpImages(pods, values);
	const made = pods.map((pod): Made => {
		const policy = generatePolicy(pod, { manifest, images, allow, pinSecrets: values["pin-secrets"] ?? false });
		const data = { ...further, [POLICY_ENTRY]: policy.text };
		return { pod, policy, initdata: makeInitdata({ algorithm: algorithm as InitdataAlgorithm, data }) };
	});
	warn(made, values);
	stdout.write(output(made, files, values));
	return 0;
}

async function entryOf(text: string): Promise<[string, string]> {
	const at = text.indexOf("=");
	const [name, file] = at > 0 ? [text.slice(0, at), text.slice(at + 1)] : [basename(text), text];
	if (name === POLICY_ENTRY) throw new ShimError("call.invalid", `--data ${text}: ${POLICY_ENTRY} is what is made here`);
	return [name, (await readInput(file, "the entry", MAX_ENTRY_BYTES)).toString("utf8")];
}

/** Notes and digests go to standard error, so that the output can be used as it is. */
function warn(made: readonly Made[], { json, initdata: asInitdata, annotate }: PolicyValues): void {
	if (json === true) return;
	for (const { pod, policy, initdata } of made) {
		for (const { where, text } of policy.notes) stderr.write(`note: ${where} ${text}\n`);
		if (asInitdata !== true && annotate !== true) continue;
		stderr.write(`${pod.where}: HOST_DATA ${initdata.hostData}\n`);
		const size = encodeInitdata(initdata).length;
		if (size > MAX_ANNOTATIONS_BYTES)
			stderr.write(`note: ${pod.where} gets an annotation of ${size} bytes: Kubernetes takes ${MAX_ANNOTATIONS_BYTES}\n`);
	}
}

function output(made: readonly Made[], files: readonly ManifestFile[], values: PolicyValues): string {
	if (values.annotate === true) return annotated(made, files);
	if (values.json === true) {
		const shown = made.map(({ pod: { kind, name }, policy, initdata }) => ({
			kind,
			name,
			policy: policy.text,
			initdata: encodeInitdata(initdata),
			hostData: initdata.hostData,
			notes: policy.notes,
		}));
		return `${JSON.stringify(shown)}\n`;
	}
	const [first] = made;
	if (first === undefined || made.length > 1)
		throw new ShimError("policy.input", `there are ${made.length} pods: ${made.map(({ pod }) => `${pod.kind}/${pod.name}`).join(", ")}`, {
			remedy: "choose one with --pod, or take --annotate or --json",
		});
	return values.initdata === true ? `${encodeInitdata(first.initdata)}\n` : first.policy.text;
}

/** The files with the annotations put in; comments and order stay. */
function annotated(made: readonly Made[], files: readonly ManifestFile[]): string {
	const texts = files.flatMap(({ name, text }) => {
		const documents = [...parseAllDocuments(text)];
		for (const { pod, initdata } of made.filter(({ pod: { place } }) => place.file === name))
			documents[pod.place.document]?.setIn([...pod.place.metadata, "annotations", INITDATA_ANNOTATION], encodeInitdata(initdata));
		return documents.map((document) => document.toString({ lineWidth: 0 }));
	});
	return texts.map((text, index) => (index === 0 || text.startsWith("---") ? text : `---\n${text}`)).join("");
}
