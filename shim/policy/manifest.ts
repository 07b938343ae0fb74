/** Kubernetes' YAML: the pods in it, and the configuration that they refer to. */

import { LineCounter, parseAllDocuments } from "yaml";
import type { Document } from "yaml";
import * as v from "valibot";

import { messageOf, ShimError } from "../base/errors.ts";
import { PodSpecSchema } from "./pod-schema.ts";
import type { PodSpecYaml } from "./pod-schema.ts";

/** A file of YAML. */
export interface ManifestFile {
	readonly name: string;
	readonly text: string;
}

/** A pod, or what pods are made from. */
export interface PodSource {
	readonly kind: string;
	/** The object's. */
	readonly name: string;
	readonly namespace: string | undefined;
	readonly labels: Readonly<Record<string, string>>;
	readonly annotations: Readonly<Record<string, string>>;
	readonly spec: PodSpecYaml;
	/** Where it stands, for messages: `file.yaml: Deployment web`. */
	readonly where: string;
	/** The file, the number of its document, and the path of the pod's metadata in it. */
	readonly place: { readonly file: string; readonly document: number; readonly metadata: readonly (string | number)[] };
}

/** What files say. */
export interface Manifest {
	readonly pods: readonly PodSource[];
	/** Keys and values by the object's name. */
	readonly configMaps: ReadonlyMap<string, Readonly<Record<string, string>>>;
	readonly secrets: ReadonlyMap<string, Readonly<Record<string, string>>>;
}

const MAX_PROBLEM = 200;
const MAX_DOCUMENTS = 1024;
/** Against documents that grow without end. */
const MAX_ALIASES = 100;
const texts = v.optional(v.nullable(v.record(v.string(), v.string())));
const MetadataSchema = v.looseObject({
	name: v.optional(v.string()),
	generateName: v.optional(v.string()),
	namespace: v.optional(v.string()),
	labels: texts,
	annotations: texts,
});
const ObjectSchema = v.looseObject({ kind: v.string(), metadata: v.optional(v.nullable(MetadataSchema)) });
const TemplateSchema = v.looseObject({ metadata: v.optional(v.nullable(MetadataSchema)), spec: v.unknown() });
const DataSchema = v.looseObject({ data: texts, stringData: texts, binaryData: texts });

/** Where the kinds that make pods have the pod. */
const TEMPLATES: Readonly<Record<string, readonly string[]>> = {
	Pod: [],
	PodTemplate: ["template"],
	Deployment: ["spec", "template"],
	ReplicaSet: ["spec", "template"],
	ReplicationController: ["spec", "template"],
	StatefulSet: ["spec", "template"],
	DaemonSet: ["spec", "template"],
	Job: ["spec", "template"],
	CronJob: ["spec", "jobTemplate", "spec", "template"],
};

/**
 * Reads files of YAML, each of one or several documents, lists included.
 * @throws ShimError `policy.input` that names file, line and column, or the field
 */
export function readManifests(files: readonly ManifestFile[]): Manifest {
	const found = {
		pods: [] as PodSource[],
		configMaps: new Map<string, Record<string, string>>(),
		secrets: new Map<string, Record<string, string>>(),
	};
	for (const file of files) for (const one of objectsOf(file)) take(one, found);
	return found;
}

interface KubernetesObject {
	readonly value: v.InferOutput<typeof ObjectSchema>;
	readonly file: string;
	readonly document: number;
	readonly path: readonly (string | number)[];
}

function* objectsOf({ name, text }: ManifestFile): Generator<KubernetesObject> {
	const lines = new LineCounter();
	const documents = parseAllDocuments(text, { lineCounter: lines, prettyErrors: false });
	if (!Array.isArray(documents)) return;
	if (documents.length > MAX_DOCUMENTS) throw bad(`${name}: more than ${MAX_DOCUMENTS} documents`);
	for (const [document, parsed] of documents.entries()) {
		const [problem] = parsed.errors;
		if (problem !== undefined) {
			const { line, col } = lines.linePos(problem.pos[0]);
			throw bad(`${name}:${line}:${col}: ${problem.message.split("\n")[0] ?? ""}`);
		}
		const value = plainValue(parsed, `${name}: document ${document + 1}`);
		if (value !== null && value !== undefined) yield* listed(value, { file: name, document, path: [] });
	}
}

function plainValue(document: Document, where: string): unknown {
	try {
		return document.toJS({ maxAliasCount: MAX_ALIASES });
	} catch (error) {
		throw bad(`${where}: ${messageOf(error)}`);
	}
}

function* listed(value: unknown, place: Omit<KubernetesObject, "value">): Generator<KubernetesObject> {
	const checked = v.safeParse(ObjectSchema, value);
	if (!checked.success) throw bad(`${place.file}: document ${place.document + 1}: ${problemOf(checked.issues[0])}`);
	const one = checked.output;
	if (!one.kind.endsWith("List") || !Array.isArray(one["items"])) return yield { value: one, ...place };
	for (const [index, item] of one["items"].entries()) yield* listed(item, { ...place, path: [...place.path, "items", index] });
}

function take(
	{ value, file, document, path }: KubernetesObject,
	found: { pods: PodSource[]; configMaps: Map<string, Record<string, string>>; secrets: Map<string, Record<string, string>> },
): void {
	const { kind } = value;
	const name = value.metadata?.name ?? value.metadata?.generateName ?? "";
	const where = `${file}: ${kind} ${name}`;
	if (kind === "ConfigMap" || kind === "Secret") {
		const { data, stringData } = parsed(DataSchema, value, where);
		const decoded = kind === "ConfigMap" ? data : mapped(data, (text) => Buffer.from(text, "base64").toString("utf8"));
		(kind === "ConfigMap" ? found.configMaps : found.secrets).set(name, { ...decoded, ...stringData });
		return;
	}
	const way = TEMPLATES[kind];
	if (way === undefined) return;
	const inner = way.reduce<unknown>(
		(at, key) => (typeof at === "object" && at !== null ? (at as Record<string, unknown>)[key] : undefined),
		value,
	);
	const template = parsed(TemplateSchema, inner, `${where}: ${way.join(".")}`);
	found.pods.push({
		kind,
		name,
		namespace: value.metadata?.namespace ?? template.metadata?.namespace,
		labels: template.metadata?.labels ?? {},
		annotations: template.metadata?.annotations ?? {},
		spec: parsed(PodSpecSchema, template.spec, `${where}: ${[...way, "spec"].join(".")}`),
		where,
		place: { file, document, metadata: [...path, ...way, "metadata"] },
	});
}

function mapped(record: Readonly<Record<string, string>> | null | undefined, change: (text: string) => string): Record<string, string> {
	return Object.fromEntries(Object.entries(record ?? {}).map(([key, text]) => [key, change(text)]));
}

function parsed<T extends v.GenericSchema>(schema: T, value: unknown, where: string): v.InferOutput<T> {
	const checked = v.safeParse(schema, value);
	if (checked.success) return checked.output;
	throw bad(`${where}: ${problemOf(checked.issues[0])}`);
}

/** The message has the value, which may be a whole file that is something else. */
function problemOf(issue: v.BaseIssue<unknown>): string {
	const path = v.getDotPath(issue);
	const message = issue.message.length > MAX_PROBLEM ? `${issue.message.slice(0, MAX_PROBLEM)}...` : issue.message;
	return path === null ? message : `${path}: ${message}`;
}

function bad(text: string): ShimError {
	return new ShimError("policy.input", text, { remedy: "give YAML as kubectl apply takes it" });
}
