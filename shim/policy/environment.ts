/** The environment of a container: what its image and its pod say, and what only the run tells. */

import { ShimError } from "../base/errors.ts";
import type { Manifest, PodSource } from "./manifest.ts";
import type { Expected } from "./policy-data.ts";
import type { Note } from "./pod-fields.ts";
import type { ContainerYaml, EnvVarYaml } from "./pod-schema.ts";
import { fieldTemplate } from "./run-values.ts";
import { ANY_TEXT, expand } from "./text-template.ts";
import type { Piece, Settle, Template } from "./text-template.ts";

/** A container's variables. */
export interface Environment {
	readonly env: Readonly<Record<string, Expected>>;
	readonly patterns: readonly string[];
	/** What `$(NAME)` stands for in commands and arguments. */
	readonly valueOf: (name: string) => Template | undefined;
}

/** What containerd gives a container whose image has no PATH (containerd, `oci.WithDefaultPathEnv`). */
const DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const ANYTHING: Piece = { like: ANY_TEXT, sample: "value" };
const NUMBER: Piece = { like: "-?[0-9]+", sample: "1" };
const ADDRESS = "[0-9a-fA-F:.]{2,45}";

/** Variables that kubelet makes of a service (kubelet, envvars.FromServices). @param name a pattern of the service's name in upper case */
function servicePatterns(name: string): string[] {
	const port = `${name}_PORT_[0-9]{1,5}_(?:TCP|UDP|SCTP)`;
	return [
		`${name}_SERVICE_HOST=${ADDRESS}`,
		`${name}_SERVICE_PORT(?:_[A-Z0-9_]+)?=[0-9]{1,5}`,
		`(?:${name}_PORT|${port})=(?:tcp|udp|sctp)://(?:\\[${ADDRESS}\\]|${ADDRESS}):[0-9]{1,5}`,
		`${port}_PROTO=(?:tcp|udp|sctp)`,
		`${port}_PORT=[0-9]{1,5}`,
		`${port}_ADDR=${ADDRESS}`,
	];
}

/** What the environment is made of. */
export interface EnvironmentSources {
	readonly pod: PodSource;
	readonly container: ContainerYaml;
	/** `NAME=value`, of the image. */
	readonly image: readonly string[];
	readonly manifest: Manifest;
	readonly hostname: Expected;
	readonly settle: Settle;
	/** Values of secrets are written into the policy, which is not secret. */
	readonly pinSecrets: boolean;
	readonly notes: Note[];
}

/**
 * The variables of a container.
 * @throws ShimError `policy.input` for a configuration whose keys have to be known and that is not given
 */
export function environmentOf(sources: EnvironmentSources): Environment {
	const { pod, container, image, hostname } = sources;
	const values = new Map<string, { readonly template: Template; readonly optional: boolean }>();
	const own = new Map<string, Template>();
	const set = (name: string, template: Template, optional = false): void => void values.set(name, { template, optional });
	set("PATH", [DEFAULT_PATH]);
	for (const text of image) set(text.split("=", 1)[0] ?? "", [text.slice(text.indexOf("=") + 1)]);
	if (container.tty === true) set("TERM", values.get("TERM")?.template ?? ["xterm"], !values.has("TERM"));
	const patterns = servicePatterns(pod.spec.enableServiceLinks === false ? "KUBERNETES" : "[A-Z][A-Z0-9_]*");
	const valueOf = (name: string): Template | undefined => own.get(name) ?? serviceValue(name, patterns);
	const give = ({ name, template, optional }: Variable): void => {
		own.set(name, template);
		set(name, template, optional);
	};
	fromObjects(sources).forEach(give);
	// One may use those before it.
	for (const one of container.env ?? []) give(valueFrom(one, sources, valueOf));
	const env = Object.fromEntries([...values].map(([name, { template, optional }]) => [name, sources.settle(template, optional)]));
	// containerd names the pod's host; a variable of the pod's own wins.
	return { env: "HOSTNAME" in env ? env : { ...env, HOSTNAME: optionally(hostname, sources.settle) }, patterns, valueOf };
}

function optionally(expected: Expected, settle: Settle): Expected {
	return typeof expected === "string" ? settle([expected], true) : { ...expected, optional: true };
}

/** Examples of what variables of services hold: an address, a port, a protocol, all of them. */
const SERVICE_SAMPLES: readonly string[] = ["192.0.2.1", "80", "tcp", "tcp://192.0.2.1:80"];

function serviceValue(name: string, patterns: readonly string[]): Template | undefined {
	const whole = (pattern: string): RegExp => new RegExp(`^(?:${pattern})$`, "u");
	const split = patterns.map((pattern) => [pattern.slice(0, pattern.indexOf("=")), pattern.slice(pattern.indexOf("=") + 1)] as const);
	const values = split.filter(([names]) => whole(names).test(name)).map(([, value]) => value);
	if (values.length === 0) return undefined;
	const like = values.join("|");
	return [{ like, sample: SERVICE_SAMPLES.find((sample) => whole(like).test(sample)) ?? "" }];
}

interface Variable {
	readonly name: string;
	readonly template: Template;
	readonly optional: boolean;
}

function fromObjects(sources: EnvironmentSources): Variable[] {
	return (sources.container.envFrom ?? []).flatMap(({ prefix, configMapRef, secretRef }) => {
		const ref = configMapRef ?? secretRef;
		if (ref === null || ref === undefined) return [];
		const kind = secretRef === ref ? "Secret" : "ConfigMap";
		const data = (kind === "Secret" ? sources.manifest.secrets : sources.manifest.configMaps).get(ref.name);
		if (data === undefined) {
			if (ref.optional === true) return [];
			throw new ShimError(
				"policy.input",
				`${sources.pod.where}: container ${sources.container.name}: envFrom: the ${kind} ${ref.name} is not given`,
				{
					remedy: `give its YAML beside the pod's: names of variables have to be known`,
				},
			);
		}
		return Object.entries(data).map(([key, value]) => ({
			name: `${prefix ?? ""}${key}`,
			template: kind === "Secret" ? secretValue(value, `${kind} ${ref.name}`, sources) : [value],
			optional: false,
		}));
	});
}

function secretValue(value: string, what: string, { pinSecrets, pod, container, notes }: EnvironmentSources): Template {
	if (pinSecrets) return [value];
	const where = `${pod.where}: container ${container.name}: ${what}`;
	if (!notes.some((note) => note.where === where))
		notes.push({ where, text: "its values are not in the policy, which is not secret: any will do (--pin-secrets writes them into it)" });
	return [ANYTHING];
}

function valueFrom(
	{ name, value, valueFrom: from }: EnvVarYaml,
	sources: EnvironmentSources,
	valueOf: (name: string) => Template | undefined,
): Variable {
	if (from === null || from === undefined) return { name, template: expand(value ?? "", valueOf), optional: false };
	const { configMapKeyRef: map, secretKeyRef: secret, fieldRef, resourceFieldRef } = from;
	const ref = map ?? secret;
	if (ref !== null && ref !== undefined) return keyValue(name, ref, ref === secret ? "Secret" : "ConfigMap", sources);
	if (fieldRef !== null && fieldRef !== undefined)
		return { name, template: fieldTemplate(fieldRef.fieldPath, sources.pod), optional: false };
	if (resourceFieldRef !== null && resourceFieldRef !== undefined) return { name, template: [NUMBER], optional: false };
	sources.notes.push({
		where: `${sources.pod.where}: container ${sources.container.name}: env ${name}.valueFrom`,
		text: `${Object.keys(from).join(", ")}: any value will do`,
	});
	return { name, template: [ANYTHING], optional: true };
}

function keyValue(
	name: string,
	ref: { readonly name: string; readonly key: string; readonly optional?: boolean | null | undefined },
	kind: "ConfigMap" | "Secret",
	sources: EnvironmentSources,
): Variable {
	const found = (kind === "Secret" ? sources.manifest.secrets : sources.manifest.configMaps).get(ref.name);
	const value = found?.[ref.key];
	const optional = ref.optional === true && value === undefined;
	const what = `${kind} ${ref.name}`;
	if (value !== undefined) return { name, template: kind === "Secret" ? secretValue(value, what, sources) : [value], optional };
	if (found !== undefined && !optional)
		throw new ShimError("policy.input", `${sources.pod.where}: env ${name}: the ${what} has no key ${ref.key}`);
	if (kind === "ConfigMap" && found === undefined)
		sources.notes.push({ where: `${sources.pod.where}: env ${name}`, text: `the ${what} is not given: any value will do` });
	return { name, template: [ANYTHING], optional };
}
