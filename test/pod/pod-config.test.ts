import t from "tap";
import { refuseHostNamespaces } from "../../shim/agent/guest-spec.ts";
import { defaultConfig } from "../../shim/config/schema.ts";
import { cgroupPath } from "../../shim/host/cgroups.ts";
import { planPod } from "../../shim/pod/plan.ts";
import { podSpec } from "../../shim/pod/pod-config.ts";
import type { PodConfig } from "../../shim/pod/pod-config.ts";
import { failing } from "../base/failing.ts";

const MIB = 1024 * 1024;
const NODE = { vcpus: 8, memoryMib: 16_384 };

/** A pod without wishes. */
function config(changes: Partial<PodConfig> = {}): PodConfig {
	return {
		hostname: "web",
		dns: undefined,
		annotations: {},
		cgroupParent: "",
		ofNode: [],
		userNamespace: false,
		sysctls: {},
		limits: undefined,
		...changes,
	};
}

const plan = (changes: Partial<PodConfig>, netns = "/run/netns/a") =>
	planPod("p1", podSpec("p1", config(changes), netns), defaultConfig(), "/f", NODE);

t.test("a pod's VM has its name, its network, and its containers' limits on top of the base", async (t) => {
	const { guest } = defaultConfig();
	const made = plan({ limits: { cpuQuotaUs: 250_000, cpuPeriodUs: 100_000, memoryBytes: 200 * MIB, hugeBytes: 0 } });
	t.equal(made.hostname, "web");
	t.strictSame(made.network, { kind: "namespace", path: "/run/netns/a" });
	t.strictSame([made.vcpus, made.memoryMib], [3, guest.memory_mib + 200]);
	t.strictSame(plan({}, "").network, { kind: "loopback" });
	t.equal(plan({}).memoryMib, guest.memory_mib);
});

t.test("a pod can't write its own size", async (t) => {
	const annotations = { "io.kubernetes.cri.sandbox-memory": String(4096 * MIB), "io.kubernetes.cri.sandbox-cpu-quota": "800000" };
	t.strictSame([plan({ annotations }).memoryMib, plan({ annotations }).vcpus], [plan({}).memoryMib, plan({}).vcpus]);
});

t.test("the VM's group lies in the pod's, as containerd names it", async (t) => {
	t.equal(plan({}).cgroupsPath, "");
	t.equal(plan({ cgroupParent: "/kubepods/pod1/" }).cgroupsPath, "/kubepods/pod1/p1");
	const systemd = plan({ cgroupParent: "/kubepods.slice/kubepods-pod1.slice" }).cgroupsPath;
	t.equal(systemd, "kubepods-pod1.slice:cri-containerd:p1");
	t.equal(cgroupPath(systemd), "/kubepods.slice/kubepods-pod1.slice/cri-containerd-p1.scope");
});

t.test("kernel parameters that containerd 2 gives every pod are there, and the pod's own win", async (t) => {
	const sysctls = { "net.ipv4.ip_unprivileged_port_start": "100", "kernel.shm_rmid_forced": "1" };
	t.strictSame(podSpec("p1", config({ sysctls }), "").linux?.sysctl, {
		"net.ipv4.ip_unprivileged_port_start": "100",
		"net.ipv4.ping_group_range": "0 2147483647",
		"kernel.shm_rmid_forced": "1",
	});
});

t.test("namespaces of the node and user namespaces are refused by name", async (t) => {
	t.throws(() => plan({ ofNode: ["network"] }), failing({ reason: "network.unsupported", message: /hostNetwork/ }));
	const refused = (changes: Partial<PodConfig>, message: RegExp): void => {
		t.throws(() => refuseHostNamespaces(podSpec("p1", config(changes), ""), 0), failing({ reason: "spec.unsupported", message }));
	};
	refused({ ofNode: ["pid"] }, /host PID namespace/);
	refused({ ofNode: ["ipc"] }, /host IPC namespace/);
	refused({ userNamespace: true }, /user namespace/);
	refuseHostNamespaces(podSpec("p1", config(), "/run/netns/a"), 0);
});
