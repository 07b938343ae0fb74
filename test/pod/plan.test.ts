/** What a pod's VM will be, from the bundle and the configuration. */

import t from "tap";

import { parseSpec, specSchema } from "../../shim/agent/oci-spec.ts";
import type { OciSpec } from "../../shim/agent/oci-spec.ts";
import { defaultConfig } from "../../shim/config/schema.ts";
import { planPod } from "../../shim/pod/plan.ts";

const config = defaultConfig();

function spec(fields: Readonly<Record<string, unknown>> = {}): OciSpec {
	return parseSpec(
		specSchema,
		{ ociVersion: "1.1.0", process: { args: ["sh"], cwd: "/" }, root: { path: "rootfs" }, ...fields },
		"the bundle",
	);
}

t.test("planPod: the defaults", async (t) => {
	const plan = planPod("pod-1", spec(), config, "/run/p");
	t.match(plan, { vsock: "/run/p/vsock.sock", hostname: "pod-1", vcpus: 1, consoleFile: undefined, landlockRules: undefined });
	const parameters = plan.kernelParameters.split(" ");
	for (const wanted of ["panic=-1", "reboot=t", "quiet"]) t.ok(parameters.includes(wanted), wanted);
	t.notOk(parameters.includes("console=ttyS0"));
});

t.test("planPod: a console and further parameters of the kernel", async (t) => {
	const wanted = { ...config, debug: { ...config.debug, console: true }, guest: { ...config.guest, kernel_parameters: " a=b  c " } };
	const plan = planPod("p", spec(), wanted, "/run/p");
	t.equal(plan.consoleFile, "/run/p/console.log");
	t.match(plan.kernelParameters, /console=ttyS0.* a=b c$/u);
	t.notMatch(plan.kernelParameters, /quiet/u);
});

t.test("planPod: a host name is the bundle's, else the beginning of the id", async (t) => {
	t.equal(planPod("p", spec({ hostname: "web-0" }), config, "/f").hostname, "web-0");
	t.equal(planPod("p", spec({ hostname: "h".repeat(80) }), config, "/f").hostname, "h".repeat(64));
	t.equal(planPod("a_long.pod-id-of-a-user", spec(), config, "/f").hostname, "a-long.pod-i");
});

t.test("planPod: Landlock gives the VMM its own folder, and the images to read", async (t) => {
	const wanted = { ...config, hypervisor: { ...config.hypervisor, landlock: true } };
	t.same(planPod("p", spec(), wanted, "/run/p").landlockRules, [
		{ path: "/run/p", access: "rw" },
		{ path: config.storage.cache_dir, access: "r" },
	]);
});
