import { renameSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import type { PodSpec } from "../../../shim/agent/oci-spec.ts";
import { checkConfigText } from "../../../shim/config/load.ts";
import { ConfigSchema, freeze } from "../../../shim/config/schema.ts";
import type { Config } from "../../../shim/config/schema.ts";
import { planPod } from "../../../shim/pod/plan.ts";
import { bindOnlyInitdata } from "../../../shim/policy/bind-only.ts";
import { encodeInitdata, INITDATA_ANNOTATION, makeInitdata } from "../../../shim/policy/initdata.ts";
import { isPoolable, planIn, shapeOf, usualPlan } from "../../../shim/pod/pool/shape.ts";
import * as v from "valibot";

const NODE = { vcpus: 8, memoryMib: 65_536 };
const MIB = 1024 * 1024;

/** A configuration whose files are in a folder. */
function configIn(folder: string, more = ""): Config {
	const files = ["vmm", "kernel", "image"].map((name) => JSON.stringify(join(folder, name)));
	const toml = `[hypervisor]\npath = ${files[0]}\n[guest]\nkernel = ${files[1]}\nimage = ${files[2]}\n${more}`;
	return freeze(v.parse(ConfigSchema, checkConfigText("config.toml", toml)));
}

const podSpec = (id: string, memoryMib = 0): PodSpec => ({
	hostname: `host-${id}`,
	annotations: { "io.kubernetes.cri.sandbox-memory": String(memoryMib * MIB), "io.kubernetes.cri.sandbox-name": id },
	linux: { cgroupsPath: `/pods/${id}`, namespaces: [{ type: "network", path: `/run/netns/${id}` }] },
});

t.test("pods that differ in name, network, group and folder have the same kind of VM, which is the usual one", async (t) => {
	const folder = t.testdir({ vmm: "", kernel: "", image: "" });
	const config = configIn(folder, "[debug]\nconsole = true\n");
	const plans = ["a", "b"].map((id) => planPod(id, podSpec(id), config, `/run/snp/p/${id}`, NODE));
	const keys = await Promise.all(plans.map(async (plan) => (await shapeOf(plan, config)).key));
	t.equal(keys[0], keys[1]);
	t.equal((await shapeOf(usualPlan(config), config)).key, keys[0]);
	t.ok(plans.every(isPoolable));
});

t.test("whatever the VMM is asked for or started with makes another kind", async (t) => {
	const folder = t.testdir({ vmm: "", kernel: "", image: "" });
	const base = configIn(folder);
	const changes = [
		"[debug]\nconsole = true\n",
		"[hypervisor.x]\n",
		"max_vcpus = 4\n",
		"hotplug_memory_mib = 256\n",
		"pci_segments = 4\n",
		"vcpus = 2\n",
		"memory_mib = 512\n",
		'kernel_parameters = "quiet"\n',
		'[log]\nlevel = "debug"\n',
		"[storage]\nshare_folders = true\n",
		'[storage]\nscratch = "memory"\n',
		"[storage]\nscratch_mib = 512\n",
	].filter((change) => !change.startsWith("[hypervisor.x"));
	const keys = await Promise.all(
		[base, ...changes.map((change) => configIn(folder, change))].map(async (config) => (await shapeOf(usualPlan(config), config)).key),
	);
	t.equal(new Set(keys).size, keys.length);
	const own = { ...base, hypervisor: { ...base.hypervisor, seccomp: false } };
	t.notOk(keys.includes((await shapeOf(usualPlan(own), own)).key), "seccomp");
	const large = planPod("a", podSpec("a", 512), base, "/run/snp/p/a", NODE);
	t.notOk(keys.includes((await shapeOf(large, base)).key), "limits");
});

t.test("a file that is written anew or replaced makes another kind; one that is gone makes none", async (t) => {
	const folder = t.testdir({ vmm: "", kernel: "1", image: "" });
	const config = configIn(folder);
	const key = async (): Promise<string> => (await shapeOf(usualPlan(config), config)).key;
	const seen = [await key()];
	writeFileSync(join(folder, "kernel"), "22");
	seen.push(await key());
	utimesSync(join(folder, "image"), 1, 1);
	seen.push(await key());
	writeFileSync(join(folder, "new"), "22");
	renameSync(join(folder, "new"), join(folder, "kernel"));
	seen.push(await key());
	t.equal(new Set(seen).size, seen.length);
	renameSync(join(folder, "vmm"), join(folder, "away"));
	await t.rejects(key(), { code: "ENOENT" });
});

t.test("a VM's plan has all its paths in its own folder, and nothing of a pod", async (t) => {
	const config = configIn(t.testdir({}), "[debug]\nconsole = true\n");
	const landlock = { ...config, hypervisor: { ...config.hypervisor, landlock: true } };
	const plan = planIn(planPod("a", podSpec("a"), landlock, "/run/snp/p/key", NODE), "/run/snp/w/name");
	t.notMatch(JSON.stringify(plan), /key|\/pods\/|netns|host-a/);
	t.equal(plan.vsock, "/run/snp/w/name/vsock.sock");
	t.equal(plan.consoleFile, "/run/snp/w/name/console.log");
	t.equal(plan.scratch?.path, "/var/lib/containerd-shim-snp/name.img");
	t.strictSame(plan.landlockRules?.[0], { path: "/run/snp/w/name", access: "rw" });
});

t.test("no VM is booted ahead for a pod without a control group", async (t) => {
	const plan = usualPlan(configIn(t.testdir({})));
	t.notOk(isPoolable(plan));
	t.ok(isPoolable({ ...plan, cgroupsPath: "/pods/a" }));
});

t.test(
	"confidential pods of any policy have the same kind of VM, launched with the initdata of all that wait, and no other pods have it",
	async (t) => {
		const folder = t.testdir({ vmm: "", kernel: "", image: "", sample: "" });
		const sample = JSON.stringify(join(folder, "sample"));
		const config = configIn(folder, `[confidential]\nmode = "sample"\nsample_image = ${sample}\n`);
		const plans = ["a", "b"].map((id) => {
			const initdata = encodeInitdata(makeInitdata({ algorithm: "sha256", data: { "policy.rego": `package agent_policy # ${id}` } }));
			return planPod(id, { ...podSpec(id), annotations: { [INITDATA_ANNOTATION]: initdata } }, config, `/run/snp/p/${id}`, NODE);
		});
		t.not(plans[0]?.confidential?.hostData, plans[1]?.confidential?.hostData);
		const shapes = await Promise.all([...plans, usualPlan(config)].map((plan) => shapeOf(plan, config)));
		t.equal(new Set(shapes.map(({ key }) => key)).size, 1);
		t.strictSame(shapes[0]?.plan.confidential?.hostData, bindOnlyInitdata().hostData);
		const ordinary = configIn(folder);
		t.not((await shapeOf({ ...usualPlan(ordinary), image: join(folder, "sample") }, ordinary)).key, shapes[0]?.key);
	},
);
