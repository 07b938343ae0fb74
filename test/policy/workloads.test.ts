/** Policies of twenty workloads: each accepts what snpd sends for its pod, and nothing of it changed; none accepts another's. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { sampleRequests } from "../../shim/command/sample-requests.ts";
import type { ImageFacts } from "../../shim/policy/container-data.ts";
import { decide, type PolicyRequest } from "../../shim/policy/engine.ts";
import { ALLOW_NOTHING, generatePolicy, imagesOf, samplePod } from "../../shim/policy/generate.ts";
import { readManifests } from "../../shim/policy/manifest.ts";
import { repositoryDir } from "../support/paths.ts";
import { DECIDE_MS, type Json } from "../support/policy.ts";

const FOLDER = join(repositoryDir, "test/policy/workloads");
const MIN_MUTATIONS = 10;
/** Workloads whose containers are tried with a policy that is not theirs. */
const OTHERS = 5;

/** An image of a name: two layers of its own, an account, and what it is known for. */
function imageOf(name: string): ImageFacts {
	const digit = (name.length % 10).toString();
	const layer = (number: string) => ({
		root_hash: (digit + number).repeat(32),
		data_bytes: 4096 * (name.length + Number(number)),
		salt: "0".repeat(64),
	});
	const base = {
		layers: [layer("2"), layer("1")],
		env: ["PATH=/usr/bin:/bin", "LANG=C"],
		entrypoint: ["/app"],
		command: ["serve"],
		workingDir: "/srv",
		user: "",
		passwd: "root:x:0:0::/root:/bin/sh\napp:x:1000:2000::/:/bin/sh\n",
		group: "root:x:0:\napp:x:2000:\nextra:x:2001:app\n",
	};
	if (name.includes("busybox")) return { ...base, entrypoint: [], command: ["sh"], env: [], workingDir: "" };
	if (name.includes("nginx"))
		return { ...base, user: "101:101", entrypoint: ["/docker-entrypoint.sh"], command: ["nginx", "-g", "daemon off;"] };
	if (name.includes("named")) return { ...base, user: "app" };
	return base;
}

type Workload = { readonly name: string; readonly policy: string; readonly requests: readonly PolicyRequest[] };

const workloads = readdirSync(FOLDER).map((name): Workload => {
	const manifest = readManifests([{ name, text: readFileSync(join(FOLDER, name), "utf8") }]);
	const [pod, ...more] = manifest.pods;
	if (pod === undefined || more.length > 0) throw new Error(`${name}: not one pod`);
	const images = new Map(imagesOf(pod).map((image) => [image, imageOf(image)]));
	const options = { manifest, images, allow: ALLOW_NOTHING, pinSecrets: false };
	return { name, policy: generatePolicy(pod, options).text, requests: sampleRequests(samplePod(pod, options)) };
});

type Mutation = readonly [field: string, change: (input: Json) => void];

const set = (at: Json | undefined, key: string | number, value: unknown): void =>
	void ((at as unknown as Record<string | number, unknown>)[key] = value);
const isText = (value: unknown, text: string): boolean => value === text;
const no = (value: unknown): boolean => value !== true;

/** Changes that no policy may accept, as far as they are changes of this request. */
function mutations(input: Json): Mutation[] {
	const { OCI } = input;
	const privileged = OCI.Linux.Resources.Devices.find((rule) => isText(rule.Type, "a") && Boolean(rule.Allow)) !== undefined;
	const all: (Mutation | false)[] = [
		["OCI.Process.Args[0]", ({ OCI: { Process } }) => set(Process.Args, 0, "/bin/evil")],
		["OCI.Process.Args", ({ OCI: { Process } }) => void Process.Args.push("more")],
		["OCI.Process.Terminal", ({ OCI: { Process } }) => set(Process, "Terminal", no(Process.Terminal))],
		["OCI.Process.Env[", ({ OCI: { Process } }) => void Process.Env.push("LD_PRELOAD=/evil.so")],
		[
			"OCI.Process.Env[",
			({ OCI: { Process } }) =>
				set(
					Process.Env,
					Process.Env.findIndex((one: unknown) => typeof one === "string" && one.startsWith("PATH=")),
					"PATH=/evil",
				),
		],
		["OCI.Process.Cwd", ({ OCI: { Process } }) => set(Process, "Cwd", "/evil")],
		["OCI.Process.User.UID", ({ OCI: { Process } }) => set(Process.User, "UID", 4711)],
		["OCI.Process.User.GID", ({ OCI: { Process } }) => set(Process.User, "GID", 4711)],
		["OCI.Process.User.AdditionalGids[", ({ OCI: { Process } }) => void Process.User.AdditionalGids.push(4711)],
		["OCI.Process.NoNewPrivileges", ({ OCI: { Process } }) => set(Process, "NoNewPrivileges", no(Process.NoNewPrivileges))],
		["OCI.Root.Readonly", ({ OCI: { Root } }) => set(Root, "Readonly", no(Root.Readonly))],
		[
			"OCI.Mounts[",
			({ OCI: { Mounts } }) => void Mounts.push({ destination: "/evil", source: "/run", type: "bind", options: ["rbind", "rw"] }),
		],
		["OCI.Linux.Sysctl", ({ OCI: { Linux } }) => set(Linux.Sysctl, "kernel.domainname", "evil")],
		["sandbox_pidns", (one) => set(one, "sandbox_pidns", no(one.sandbox_pidns))],
		["storages[0].options[6]", ({ storages }) => set(storages.at(0).options, 6, `X-kata.dmverity.roothash=${"f".repeat(64)}`)],
		["storages[", ({ storages }) => void storages.splice(0, 2, storages.at(1), storages.at(0))],
		["storages", ({ storages }) => void storages.push({ ...storages.at(0), driver: "virtio-fs", source: "share1" })],
		!privileged && [
			"OCI.Process.Capabilities.Effective[",
			({ OCI: { Process } }) => void Process.Capabilities.Effective.push("CAP_SYS_BOOT"),
		],
		!privileged && [
			"OCI.Linux.Devices[",
			({ OCI: { Linux } }) => void Linux.Devices.push({ Path: "/dev/mem", Type: "c", Major: 1, Minor: 1 }),
		],
	];
	return all.filter((one) => one !== false);
}

function mutated(request: PolicyRequest, [, change]: Mutation): PolicyRequest {
	const input = structuredClone<unknown>(request.input) as Json;
	change(input);
	return { name: request.name, input };
}

/** The next few workloads. */
function others(name: string): Workload[] {
	const at = workloads.findIndex((one) => one.name === name);
	return [...workloads, ...workloads].slice(at + 1, at + 1 + OTHERS);
}

t.test("there are twenty", async (t) => {
	t.equal(workloads.length, 20);
});

for (const { name, policy, requests } of workloads) {
	t.test(name, async (t) => {
		const containers = requests.filter((request) => request.name === "CreateContainerRequest");
		const changes = containers.flatMap((request) =>
			mutations(request.input as Json).map((mutation) => ({ mutation, request: mutated(request, mutation) })),
		);
		t.ok(changes.length >= MIN_MUTATIONS * containers.length);
		const foreign = others(name).flatMap((other) => other.requests.filter((request) => request.name === "CreateContainerRequest"));
		const asked = [...requests, ...changes.map(({ request }) => request), ...foreign];
		const decisions = await decide({ name, text: policy }, asked, { timeoutMs: DECIDE_MS });
		for (const [index, request] of requests.entries()) t.match(decisions[index], { allowed: true }, request.name);
		for (const [index, { mutation }] of changes.entries()) {
			const decision = decisions[requests.length + index];
			const [field] = mutation;
			t.equal(decision?.allowed, false, `${field} counts`);
			t.ok(
				decision?.reasons.some(({ path }) => path.startsWith(field)),
				`${field} is named, of ${decision?.reasons.map(({ path }) => path).join(" ")}`,
			);
		}
		t.ok(
			decisions.slice(-foreign.length).every(({ allowed }) => !allowed),
			"containers of others are denied",
		);
	});
}
