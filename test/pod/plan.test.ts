/** What a pod's VM will be, from the bundle and the configuration. */

import t from "tap";

import { parseSpec, specSchema } from "../../shim/agent/oci-spec.ts";
import type { OciSpec } from "../../shim/agent/oci-spec.ts";
import { defaultConfig } from "../../shim/config/schema.ts";
import { planPod } from "../../shim/pod/plan.ts";

const config = defaultConfig();
const NODE = { vcpus: 8, memoryMib: 16_384 };

function spec(fields: Readonly<Record<string, unknown>> = {}): OciSpec {
	return parseSpec(
		specSchema,
		{
			ociVersion: "1.1.0",
			process: { args: ["sh"], cwd: "/" },
			root: { path: "rootfs" },
			linux: { namespaces: [{ type: "network" }] },
			...fields,
		},
		"the bundle",
	);
}

t.test("planPod: the defaults", async (t) => {
	const plan = planPod("pod-1", spec(), config, "/run/p", NODE);
	t.match(plan, { vsock: "/run/p/vsock.sock", hostname: "pod-1", vcpus: 1, consoleFile: undefined, landlockRules: undefined });
	const parameters = plan.kernelParameters.split(" ");
	for (const wanted of ["panic=-1", "reboot=t", "quiet"]) t.ok(parameters.includes(wanted), wanted);
	t.notOk(parameters.includes("console=ttyS0"));
});

t.test("planPod: the network is that of the namespace; a pod in the host's is refused before anything is made", async (t) => {
	const path = "/run/netns/cni-1";
	t.same(planPod("p", spec(), config, "/run/p", NODE).network, { kind: "loopback" });
	t.same(planPod("p", spec({ linux: { namespaces: [{ type: "network", path }] } }), config, "/run/p", NODE).network, {
		kind: "namespace",
		path,
	});
	for (const linux of [{}, { namespaces: [] }, { namespaces: [{ type: "pid" }] }])
		t.throws(() => planPod("p", spec({ linux }), config, "/run/p", NODE), { reason: "network.unsupported", message: /hostNetwork/ });
});

t.test("planPod: a console and further parameters of the kernel", async (t) => {
	const wanted = { ...config, debug: { ...config.debug, console: true }, guest: { ...config.guest, kernel_parameters: " a=b  c " } };
	const plan = planPod("p", spec(), wanted, "/run/p", NODE);
	t.equal(plan.consoleFile, "/run/p/console.log");
	t.match(plan.kernelParameters, /console=ttyS0.* a=b c$/u);
	t.notMatch(plan.kernelParameters, /quiet/u);
});

t.test("planPod: a VM can give memory back unless the configuration says that it keeps it", async (t) => {
	const balloon = (reclaim: "balloon" | "reporting" | "off"): boolean =>
		planPod("p", spec(), { ...config, memory: { ...config.memory, reclaim } }, "/f", NODE).balloon;
	t.strictSame([balloon("balloon"), balloon("reporting"), balloon("off")], [true, true, false]);
});

t.test("planPod: a host name is the bundle's, else the beginning of the id", async (t) => {
	t.equal(planPod("p", spec({ hostname: "web-0" }), config, "/f", NODE).hostname, "web-0");
	t.equal(planPod("p", spec({ hostname: "h".repeat(80) }), config, "/f", NODE).hostname, "h".repeat(64));
	t.equal(planPod("a_long.pod-id-of-a-user", spec(), config, "/f", NODE).hostname, "a-long.pod-i");
});

t.test("planPod: Landlock gives the VMM its own folder, and the images to read", async (t) => {
	const wanted = { ...config, hypervisor: { ...config.hypervisor, landlock: true } };
	t.same(planPod("p", spec(), wanted, "/run/p", NODE).landlockRules, [
		{ path: "/run/p", access: "rw" },
		{ path: config.storage.cache_dir, access: "r" },
	]);
});

t.test("planPod: the size follows the limits of the pod's containers", async (t) => {
	const annotations = {
		"io.kubernetes.cri.container-type": "sandbox",
		"io.kubernetes.cri.sandbox-cpu-quota": "250000",
		"io.kubernetes.cri.sandbox-cpu-period": "100000",
		"io.kubernetes.cri.sandbox-memory": String(300 * 1024 * 1024),
	};
	t.match(planPod("p", spec({ annotations }), config, "/p", NODE), { vcpus: 3, memoryMib: config.guest.memory_mib + 300 });
	t.match(planPod("p", spec({ annotations }), config, "/p", { ...NODE, vcpus: 2 }), { vcpus: 2 }, "no more processors than the node has");
	const none = { ...annotations, "io.kubernetes.cri.sandbox-cpu-quota": "0", "io.kubernetes.cri.sandbox-memory": "0" };
	t.match(planPod("p", spec({ annotations: none }), config, "/p", NODE), { vcpus: 1, memoryMib: config.guest.memory_mib });
	const linux = {
		namespaces: [{ type: "network" }],
		resources: { memory: { limit: 64 * 1024 * 1024 }, cpu: { quota: 150_000, period: 100_000 } },
	};
	t.match(planPod("p", spec({ linux }), config, "/p", NODE), { vcpus: 2, memoryMib: config.guest.memory_mib + 64 }, "a container alone");
	const huge = { ...annotations, "io.kubernetes.cri.sandbox-memory": String(2 ** 50) };
	t.throws(() => planPod("p", spec({ annotations: huge }), config, "/p", NODE), { reason: "pod.too-large", message: /16384 MiB/ });
});

t.test("planPod: a control group that leads out is refused before anything is taken or made", async (t) => {
	for (const cgroupsPath of ["/", "/../pods", "/a/../../b"]) {
		const linux = { namespaces: [{ type: "network" }], cgroupsPath };
		t.throws(() => planPod("p", spec({ linux }), config, "/run/p", NODE), { reason: "spec.invalid", message: /cgroupsPath|control group/ });
	}
});
