import t from "tap";
import { runtime } from "../../proto/gen/containerd.js";
import { podOptions } from "../../shim/service/sandbox-options.ts";
import { failing } from "../base/failing.ts";

const { NamespaceMode, PodSandboxConfig } = runtime.v1;
const any = (config: runtime.v1.PodSandboxConfig.$Properties, type_url = "runtime.v1.PodSandboxConfig") => ({
	type_url,
	value: PodSandboxConfig.encode(config).finish(),
});

t.test("Kubernetes' configuration of a pod is read", async (t) => {
	const options = any({
		hostname: "web",
		dns_config: { servers: ["10.0.0.1"], options: ["ndots:5"] },
		annotations: { a: "b" },
		linux: {
			cgroup_parent: "/kubepods/x",
			sysctls: { "kernel.sem": "1" },
			security_context: { namespace_options: { network: NamespaceMode.NODE, pid: NamespaceMode.CONTAINER, ipc: NamespaceMode.NODE } },
			resources: { cpu_period: 100_000, cpu_quota: -1, memory_limit_in_bytes: 2 ** 40 },
		},
	});
	t.strictSame(podOptions("p", options), {
		hostname: "web",
		dns: { servers: ["10.0.0.1"], searches: [], options: ["ndots:5"] },
		annotations: { a: "b" },
		cgroupParent: "/kubepods/x",
		ofNode: ["network", "ipc"],
		userNamespace: false,
		sysctls: { "kernel.sem": "1" },
		limits: { cpuPeriodUs: 100_000, cpuQuotaUs: -1, memoryBytes: 2 ** 40, hugeBytes: 0 },
	});
});

t.test("what is not told has no effect, and no options are no pod", async (t) => {
	t.match(podOptions("p", any({}, "type.googleapis.com/runtime.v1.PodSandboxConfig")), { hostname: "", cgroupParent: "", ofNode: [] });
	t.equal(podOptions("p", any({}))?.dns, undefined);
	t.equal(podOptions("p", any({}))?.limits, undefined);
	for (const none of [undefined, null, {}, { type_url: "", value: new Uint8Array(0) }]) t.equal(podOptions("p", none), undefined);
});

t.test("a user namespace is told apart from none", async (t) => {
	const asked = (mode: runtime.v1.NamespaceMode) =>
		podOptions("p", any({ linux: { security_context: { namespace_options: { userns_options: { mode } } } } }))?.userNamespace;
	t.strictSame([asked(NamespaceMode.POD), asked(NamespaceMode.NODE)], [true, false]);
});

t.test("options of another kind, and damaged ones, are refused", async (t) => {
	t.throws(() => podOptions("p", any({}, "runtime.v1.ContainerConfig")), failing({ reason: "call.invalid", message: /ContainerConfig/ }));
	const damaged = { type_url: "runtime.v1.PodSandboxConfig", value: Uint8Array.of(0x12, 0xff) };
	t.throws(() => podOptions("p", damaged), failing({ reason: "call.invalid", message: /can't be decoded/ }));
});
