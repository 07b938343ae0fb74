/** One policy takes what snpd sends under every containerd, and nothing of it may be missing or changed. */
import t from "tap";
import { decide } from "../../shim/policy/engine.ts";
import { DECIDE_MS, recorded, recordedContainer, recordedPolicy, recordings } from "../support/policy.ts";

t.test("one policy accepts all requests of a pod under each containerd", async (t) => {
	const { text } = recordedPolicy({ termination_message: true });
	t.ok(recordings().length >= 6);
	for (const name of recordings()) {
		const requests = recorded(name);
		const decisions = await decide({ name: "policy", text }, requests, { timeoutMs: DECIDE_MS });
		const denied = decisions.flatMap((decision, index) => (decision.allowed ? [] : [{ request: requests[index]?.name, ...decision }]));
		t.same(denied, [], name);
		t.equal(requests.filter((request) => request.name === "CreateContainerRequest").length, 4, name);
	}
});

/** Fields whose absence changes nothing: the protocol's default is what is expected, the guest decides by itself, or a resource is only less. */
const FREE: readonly RegExp[] = [
	/^(?:stdin|stdout|stderr)_port$/u,
	/^string_user$/u,
	/^sandbox_pidns$/u,
	/^OCI\.(?:Version|Hostname|Hooks|Solaris|Windows)$/u,
	/^OCI\.Process\.(?:ConsoleSize|Rlimits|OOMScoreAdj)/u,
	/^OCI\.Annotations\.io\.kubernetes/u,
	/^OCI\.Linux\.(?:IntelRdt)/u,
	/^OCI\.Linux\.Resources/u,
	/^OCI\.Linux\.Devices/u,
	/^OCI\.Linux\.Seccomp\.(?:Architectures|Flags|Syscalls)/u,
	/^OCI\.Linux\.Sysctl\.net\.ipv4\.(?:ip_unprivileged_port_start|ping_group_range)$/u,
	/^storages\.\d+\.fs_group$/u,
	/^devices$/u,
	/^storages\.[23]\.options$/u,
	/^OCI\.Process\.Env\.\d+$/u,
	/^OCI\.Mounts\.\d+$/u,
	/^OCI\.Process\.User\.AdditionalGids\.\d+$/u,
];

function* places(value: unknown, path: string[] = []): Generator<string[]> {
	if (path.length > 0) yield path;
	if (typeof value !== "object" || value === null) return;
	for (const [key, part] of Object.entries(value)) yield* places(part, [...path, key]);
}

function withNull(value: unknown, path: readonly string[]): unknown {
	const copy = structuredClone(value);
	const parent = path.slice(0, -1).reduce((at, key) => (at as Record<string, unknown>)[key], copy);
	(parent as Record<string, unknown>)[path.at(-1) ?? ""] = null;
	return copy;
}

t.test("a request in which something is null is denied, wherever it counts", async (t) => {
	const whole = recordedContainer("2-snp", "web");
	// What is in a list of resources or calls is free as a whole.
	const all = [...places(whole)].filter((path) => !FREE.some((pattern) => pattern.test(path.join("."))));
	t.ok(all.length > 200, `${all.length} places`);
	const requests = all.map((path) => ({ name: "CreateContainerRequest", input: withNull(whole, path) }));
	const decisions = await decide({ name: "policy", text: recordedPolicy().text }, requests, { timeoutMs: DECIDE_MS });
	t.same(
		decisions.flatMap(({ allowed }, index) => (allowed ? [all[index]?.join(".")] : [])),
		[],
	);
});
