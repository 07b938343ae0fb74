/** What `snpctl policy` is called with: options, YAML, images. */

import { readdirSync, statSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { env } from "node:process";
import { parseArgs } from "node:util";

import { messageOf, ShimError } from "../base/errors.ts";
import { CONFIG_FILE_VARIABLE, DEFAULT_CONFIG_FILE } from "../base/names.ts";
import { loadConfig } from "../config/load.ts";
import type { ImageFacts } from "../policy/container-data.ts";
import { imagesOf } from "../policy/generate.ts";
import { readManifests } from "../policy/manifest.ts";
import type { Manifest, ManifestFile, PodSource } from "../policy/manifest.ts";
import type { AllowData, ExecData } from "../policy/policy-data.ts";
import { ImageStore } from "../storage/image-store.ts";
import type { DescribedImage, ImageSource } from "../storage/image-store.ts";
import { ProgressBar } from "./progress-bar.ts";
import { readInput } from "./read-input.ts";

const DEFAULT_ADDRESS = "/run/containerd/containerd.sock";
const DEFAULT_NAMESPACE = "k8s.io";

export const POLICY_USAGE = `usage: snpctl policy generate [options] FILE.yaml...
       snpctl policy check --policy FILE [options] FILE.yaml...
       snpctl policy check --policy FILE --requests FILE
       snpctl policy explain --policy FILE --request FILE
       snpctl policy explain POD | TEXT
generate makes the policy of a pod (also of a Deployment, StatefulSet, DaemonSet, Job, CronJob) and of its images; ConfigMaps and Secrets that
it refers to are taken from the same files. check says whether a policy lets a pod run; explain what a denial was and what to add.
  --image [NAME=]FOLDER  an OCI layout for an image of the pod; other images are asked of containerd
  --address SOCKET       containerd's socket (default: ${DEFAULT_ADDRESS})
  --namespace NAME       containerd's namespace (default: ${DEFAULT_NAMESPACE})
  --cache-dir DIR        the cache of layers (default: the configuration's storage.cache_dir)
  --pod KIND/NAME        which one, when the files have several
what the host may do beside running the pod (nothing, unless it is named):
  --allow-exec COMMAND   run this in a container; [CONTAINER:]words, [CONTAINER:]["a","json","list"], or * for anything. May be repeated
  --allow-logs           read what containers write
  --allow-stdin          write to a container's or an exec's input (containers with stdin: true have it)
  --allow-port N         connect to a port of the pod's loopback. May be repeated
  --allow-termination-message
  --pin-secrets          write the values of given Secrets into the policy, which is not secret
output of generate: the policy, or
  --initdata             the value of the annotation io.katacontainers.config.hypervisor.cc_init_data
  --annotate             the YAML with that annotation put in
  --data NAME=FILE       a further entry of the initdata. May be repeated
  --algorithm NAME       of the initdata's digest: sha256 (default), sha384, sha512
  --json                 policy, initdata, digest (HOST_DATA) and notes
input of check and explain:
  --policy FILE          Rego, or YAML or text with an annotation of initdata
  --requests FILE        requests to the guest, one JSON document a line (debug.requests keeps them)
  --request FILE         one of them
exit code: 0; 1 for a denial, wrong use, or a pod that no policy can be made of`;

const OPTIONS = {
	image: { type: "string", multiple: true },
	address: { type: "string", default: DEFAULT_ADDRESS },
	namespace: { type: "string", default: DEFAULT_NAMESPACE },
	"cache-dir": { type: "string" },
	pod: { type: "string" },
	"allow-exec": { type: "string", multiple: true },
	"allow-logs": { type: "boolean" },
	"allow-stdin": { type: "boolean" },
	"allow-port": { type: "string", multiple: true },
	"allow-termination-message": { type: "boolean" },
	"pin-secrets": { type: "boolean" },
	initdata: { type: "boolean" },
	annotate: { type: "boolean" },
	data: { type: "string", multiple: true },
	algorithm: { type: "string", default: "sha256" },
	policy: { type: "string" },
	requests: { type: "string" },
	request: { type: "string" },
	"state-dir": { type: "string" },
	json: { type: "boolean" },
	help: { type: "boolean", short: "h" },
} as const;

/** The command line of `snpctl policy`, read. @throws ShimError `call.invalid` */
export function policyArguments(args: readonly string[]) {
	try {
		return parseArgs({ args: [...args], allowPositionals: true, options: OPTIONS });
	} catch (error) {
		throw new ShimError("call.invalid", messageOf(error), { remedy: POLICY_USAGE });
	}
}

export type PolicyValues = ReturnType<typeof policyArguments>["values"];

const MAX_YAML_BYTES = 16 * 1024 * 1024;

/** The files of YAML that were named. */
export async function manifestFiles(names: readonly string[]): Promise<ManifestFile[]> {
	if (names.length === 0) throw new ShimError("call.invalid", "no YAML is named", { remedy: POLICY_USAGE });
	return await Promise.all(
		names.map(async (name) => ({ name, text: (await readInput(name, "the file", MAX_YAML_BYTES)).toString("utf8") })),
	);
}

/** The pods of files that are meant. @throws ShimError `policy.input` when there is none */
export function wantedPods(files: readonly ManifestFile[], wanted: string | undefined): { manifest: Manifest; pods: readonly PodSource[] } {
	const manifest = readManifests(files);
	const named = ({ kind, name }: PodSource): string => `${kind}/${name}`;
	const pods = manifest.pods.filter((pod) => wanted === undefined || named(pod).toLowerCase() === wanted.toLowerCase());
	if (pods.length > 0) return { manifest, pods };
	const there = manifest.pods.map(named).join(", ");
	const what =
		wanted === undefined ? "there is no pod, and nothing that makes pods" : `there is no ${wanted}${there === "" ? "" : `, but ${there}`}`;
	throw new ShimError("policy.input", `${files.map(({ name }) => name).join(", ")}: ${what}`, {
		remedy: "give the YAML of a Pod, Deployment, StatefulSet, DaemonSet, Job or CronJob",
	});
}

/** What the command line allows. @throws ShimError `call.invalid` */
export function allowed(values: PolicyValues): AllowData {
	return {
		exec: (values["allow-exec"] ?? []).map(execOf),
		logs: values["allow-logs"] ?? false,
		stdin: values["allow-stdin"] ?? false,
		ports: (values["allow-port"] ?? []).map(portOf),
		termination_message: values["allow-termination-message"] ?? false,
	};
}

function execOf(text: string): ExecData {
	const parts = /^(?:(?<container>[a-z0-9][a-z0-9-]{0,62}):)?(?<command>.+)$/su.exec(text)?.groups;
	const container = parts?.["container"] ?? "";
	const command = (parts?.["command"] ?? "").trim();
	if (command === "*") return { container, any: true, args: [] };
	const args = command.startsWith("[") ? jsonWords(command) : command.split(/\s+/u).filter((word) => word !== "");
	if (args.length === 0) throw new ShimError("call.invalid", `--allow-exec ${text}: no command`, { remedy: POLICY_USAGE });
	return { container, any: false, args };
}

function jsonWords(text: string): string[] {
	try {
		const words: unknown = JSON.parse(text);
		if (Array.isArray(words) && words.every((word) => typeof word === "string")) return words;
	} catch {
		// Told below.
	}
	throw new ShimError("call.invalid", `--allow-exec ${text}: is no JSON list of texts`, { remedy: POLICY_USAGE });
}

function portOf(text: string): number {
	const port = Number(text);
	if (/^[0-9]{1,5}$/u.test(text) && port >= 1 && port <= 65_535) return port;
	throw new ShimError("call.invalid", `--allow-port ${text}: is no port`, { remedy: POLICY_USAGE });
}

/** The name that containerd knows an image by (distribution reference, normalized): `nginx` is `docker.io/library/nginx:latest`. */
export function fullName(image: string): string {
	const [first = "", ...rest] = image.split("/");
	const isHost = rest.length > 0 && (/[.:]/u.test(first) || first === "localhost");
	const path = isHost ? image : rest.length > 0 ? `docker.io/${image}` : `docker.io/library/${image}`;
	return /[:@][^/]*$/u.test(path) ? path : `${path}:latest`;
}

/** Looks the images of pods up, each once. @throws ShimError `policy.input` that names the image */
export async function lookUpImages(pods: readonly PodSource[], values: PolicyValues): Promise<Map<string, ImageFacts>> {
	const layouts = await layoutsOf(values.image ?? []);
	const names = [...new Set(pods.flatMap(imagesOf))];
	const file = env[CONFIG_FILE_VARIABLE];
	const config = await loadConfig(file ?? DEFAULT_CONFIG_FILE, { required: file !== undefined });
	const store = new ImageStore(resolve(values["cache-dir"] ?? config.storage.cache_dir), config.timeouts.image_build_ms);
	const abort = new AbortController();
	const stop = (): void => abort.abort(new ShimError("wait.canceled", "stopped"));
	process.once("SIGINT", stop);
	try {
		const found = new Map<string, ImageFacts>();
		for (const name of names) found.set(name, await lookUp(name, sourceOf(name, layouts, names.length, values), store, abort.signal));
		return found;
	} finally {
		process.off("SIGINT", stop);
		store.close();
	}
}

interface Layout {
	/** Names of the image, given or by the layout's annotation. */
	readonly names: readonly string[];
	readonly folder: string;
}

async function layoutsOf(given: readonly string[]): Promise<Layout[]> {
	return await Promise.all(
		given.map(async (text) => {
			const at = statSync(text, { throwIfNoEntry: false })?.isDirectory() === true ? -1 : text.indexOf("=");
			const folder = resolve(text.slice(at + 1));
			return { names: at > 0 ? [fullName(text.slice(0, at))] : await annotatedNames(folder), folder };
		}),
	);
}

async function annotatedNames(folder: string): Promise<string[]> {
	try {
		const index = JSON.parse(await readFile(join(folder, "index.json"), "utf8")) as {
			manifests?: { annotations?: Record<string, unknown> }[];
		};
		const names = (index.manifests ?? []).map(
			({ annotations }) => annotations?.["io.containerd.image.name"] ?? annotations?.["org.opencontainers.image.ref.name"],
		);
		return names.flatMap((name) => (typeof name === "string" ? [fullName(name)] : []));
	} catch (error) {
		const there =
			statSync(folder, { throwIfNoEntry: false }) === undefined
				? "does not exist"
				: `has ${readdirSync(folder).length} entries and no readable index.json`;
		throw new ShimError("policy.input", `--image ${folder}: the folder ${there}`, {
			remedy: "name the folder of an OCI image layout",
			cause: error,
		});
	}
}

function sourceOf(name: string, layouts: readonly Layout[], images: number, { address, namespace }: PolicyValues): ImageSource {
	const full = fullName(name);
	const named = layouts.find(({ names }) => names.includes(full));
	// One image and one layout need no name.
	const layout = named ?? (images === 1 && layouts.length === 1 ? layouts[0] : undefined);
	if (layout !== undefined) return { kind: "layout", folder: layout.folder };
	return { kind: "containerd", address, namespace, name: full };
}

const ZERO_SALT = "0".repeat(64);

async function lookUp(name: string, source: ImageSource, store: ImageStore, signal: AbortSignal): Promise<ImageFacts> {
	const bar = new ProgressBar(name);
	const shares = new Map<string, number>();
	try {
		const image = await store.describe(source, signal, ({ diffId, done, total }) => {
			shares.set(diffId, total === 0 ? 0 : done / total);
			bar.show([...shares.values()]);
		});
		return factsOf(image);
	} catch (error) {
		if (!(error instanceof ShimError) || error.reason === "wait.canceled") throw error;
		const where = source.kind === "layout" ? source.folder : `containerd at ${source.address}, namespace ${source.namespace}`;
		throw new ShimError("policy.input", `the image ${name} can't be had from ${where}: ${error.message}`, {
			remedy: "pull it, or name the folder of an OCI layout with --image",
			cause: error,
		});
	} finally {
		bar.clear();
	}
}

function factsOf({ layers, defaults, passwd, group }: DescribedImage): ImageFacts {
	return {
		layers: layers.map(({ rootHash, dataBytes, salt }) => ({ root_hash: rootHash, data_bytes: dataBytes, salt: salt ?? ZERO_SALT })),
		env: defaults.Env ?? [],
		entrypoint: defaults.Entrypoint ?? [],
		command: defaults.Cmd ?? [],
		workingDir: defaults.WorkingDir ?? "",
		user: defaults.User ?? "",
		passwd,
		group,
	};
}
