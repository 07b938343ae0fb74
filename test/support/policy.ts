/** Policies and requests of the recorded pod (test/policy/recorded), for tests of policies. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { ImageFacts } from "../../shim/policy/container-data.ts";
import type { PolicyRequest } from "../../shim/policy/engine.ts";
import { ALLOW_NOTHING, generatePolicy, type GeneratedPolicy } from "../../shim/policy/generate.ts";
import { readManifests } from "../../shim/policy/manifest.ts";
import type { AllowData } from "../../shim/policy/policy-data.ts";
import { repositoryDir } from "./paths.ts";

const FOLDER = join(repositoryDir, "test/policy/recorded");
export const DECIDE_MS = 120_000;

/** busybox, as `buildBusyboxImage` makes it, with the root hash that it had when the requests were recorded. */
export const BUSYBOX: ImageFacts = {
	layers: [{ root_hash: "2b26d17219494acd035067806131219c89bb6ef5bc535664bd1d7b44392f3951", data_bytes: 2_019_328, salt: "0".repeat(64) }],
	env: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "FROM_IMAGE=yes"],
	entrypoint: [],
	command: ["/bin/sh"],
	workingDir: "/",
	user: "",
	passwd: "root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1001:guest:/home:/bin/sh\n",
	group: "root:x:0:\nguest:x:1001:\nextra:x:1002:guest\n",
};

/** The names of all recordings: `2-snp-sandbox`. */
export function recordings(): string[] {
	return readdirSync(FOLDER)
		.filter((name) => name.endsWith(".json"))
		.map((name) => name.replace(/\.json$/u, ""));
}

/** The requests of a recording. */
export function recorded(name: string): PolicyRequest[] {
	return JSON.parse(readFileSync(join(FOLDER, `${name}.json`), "utf8")) as PolicyRequest[];
}

/** The policy of the recorded pod. */
export function recordedPolicy(allow: Partial<AllowData> = {}): GeneratedPolicy {
	const manifest = readManifests([{ name: "pod.yaml", text: readFileSync(join(FOLDER, "pod.yaml"), "utf8") }]);
	const [pod] = manifest.pods;
	if (pod === undefined) throw new Error("no pod");
	const images = new Map([["docker.io/library/snp-busybox:latest", BUSYBOX]]);
	return generatePolicy(pod, { manifest, images, allow: { ...ALLOW_NOTHING, ...allow }, pinSecrets: false });
}

type Field =
	| "OCI"
	| "Process"
	| "Args"
	| "Env"
	| "User"
	| "AdditionalGids"
	| "Capabilities"
	| "Bounding"
	| "Effective"
	| "Permitted"
	| "Ambient"
	| "Root"
	| "Annotations"
	| "Mounts"
	| "Linux"
	| "Sysctl"
	| "Namespaces"
	| "UIDMappings"
	| "Seccomp"
	| "Syscalls"
	| "MaskedPaths"
	| "ReadonlyPaths"
	| "Devices"
	| "Resources"
	| "Memory"
	| "storages"
	| "devices"
	| "shared_mounts"
	| "options"
	| "destination"
	| "source"
	| "dns"
	| "Terminal"
	| "NoNewPrivileges"
	| "Readonly"
	| "Type"
	| "Allow"
	| "sandbox_pidns"
	| "kernel_modules"
	| "interface"
	| "IPAddresses"
	| "routes"
	| "Routes"
	| "path";

/** A part of a request, for changes: the fields that tests name, and lists. */
export interface Json extends Record<Field, Json> {
	[index: number]: Json;
	readonly length: number;
	push(...values: unknown[]): number;
	pop(): unknown;
	shift(): unknown;
	at(index: number): Json;
	indexOf(value: unknown): number;
	reverse(): unknown;
	splice(start: number, count: number, ...values: unknown[]): Json;
	filter(keep: (one: Json) => boolean): Json;
	find(is: (one: Json) => boolean): Json | undefined;
	findIndex(is: (one: Json) => boolean): number;
}

/** The CreateContainer request of a recorded container, to be changed at will. */
export function recordedContainer(recording: string, container: string): Json {
	const found = recorded(recording).find(({ name, input }) => {
		const annotations = (input as { OCI?: { Annotations?: Record<string, string> } }).OCI?.Annotations;
		return name === "CreateContainerRequest" && annotations?.["io.kubernetes.cri.container-name"] === container;
	});
	if (found === undefined) throw new Error(`no container ${container} in ${recording}`);
	return structuredClone<unknown>(found.input) as Json;
}
