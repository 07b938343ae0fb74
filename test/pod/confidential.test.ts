/** What makes a pod confidential, and which annotations it must not have. */

import { createHash } from "node:crypto";
import { gunzipSync } from "node:zlib";
import t from "tap";

import { ShimError } from "../../shim/base/errors.ts";
import { defaultConfig } from "../../shim/config/schema.ts";
import type { Config } from "../../shim/config/schema.ts";
import { checkAnnotations, marked, planConfidential } from "../../shim/pod/confidential.ts";
import { failing } from "../base/failing.ts";
import { encodeInitdata, INITDATA_ANNOTATION, makeInitdata } from "../../shim/policy/initdata.ts";

const MODES = ["off", "snp", "sample"] as const;
const configOf = (mode: Config["confidential"]["mode"], igvm = "/g-{vcpus}.igvm"): Config => ({
	...defaultConfig(),
	confidential: { ...defaultConfig().confidential, mode, igvm },
});
const initdata = makeInitdata({ algorithm: "sha256", data: { "policy.rego": "package agent_policy\n", "aa.toml": "x" } });
const annotations = { [INITDATA_ANNOTATION]: encodeInitdata(initdata), "example.com/other": "1" };

t.test("an ordinary pod has no confidential part, and what promises one is refused by name with the remedy", async (t) => {
	t.equal(
		planConfidential("p", { "example.com/a": "b", "io.katacontainers.config.hypervisor.default_vcpus": "4" }, configOf("off"), 1),
		undefined,
	);
	for (const name of [INITDATA_ANNOTATION, "io.katacontainers.config.agent.policy", "io.katacontainers.config.runtime.cc_init_data"]) {
		t.throws(() => planConfidential("p", { [name]: "x" }, configOf("off"), 1), {
			reason: "confidential.annotation",
			message: `pod p has the annotation ${name}: this runtime class is not confidential, and nothing would obey it`,
			remedy: /confidential\.mode = "snp"/,
		});
	}
});

t.test("a confidential pod's HOST_DATA is the digest of its initdata, and its IGVM file that of its number of processors", async (t) => {
	const plan = planConfidential("p", annotations, configOf("snp"), 4);
	t.match(plan, { mode: "snp", igvm: "/g-4.igvm", hostData: createHash("sha256").update(initdata.toml).digest("hex") });
	t.same(gunzipSync(plan?.initdata ?? Buffer.alloc(0)), Buffer.from(initdata.toml));
	t.match(planConfidential("p", annotations, configOf("sample"), 4), { mode: "sample", igvm: "", hostData: initdata.hostData });
	for (const algorithm of ["sha384", "sha512"] as const) {
		const other = makeInitdata({ algorithm, data: { "policy.rego": "package agent_policy\n" } });
		const value = { [INITDATA_ANNOTATION]: encodeInitdata(other) };
		t.equal(
			planConfidential("p", value, configOf("snp"), 1)?.hostData,
			createHash(algorithm).update(other.toml).digest("hex").slice(0, 64),
		);
	}
});

t.test("a confidential pod without sound initdata is refused before anything is made", async (t) => {
	const noPolicy = encodeInitdata(makeInitdata({ algorithm: "sha256", data: { "aa.toml": "x" } }));
	for (const mode of ["snp", "sample"] as const) {
		t.throws(() => planConfidential("p", {}, configOf(mode), 1), {
			reason: "confidential.initdata",
			message: /no annotation io\./,
			remedy: /pod_annotations/,
		});
		t.throws(() => planConfidential("p", { [INITDATA_ANNOTATION]: noPolicy }, configOf(mode), 1), {
			reason: "confidential.initdata",
			message: /policy\.rego/,
		});
		t.throws(() => planConfidential("p", { [INITDATA_ANNOTATION]: "%%" }, configOf(mode), 1), failing({ reason: "initdata.invalid" }));
	}
});

t.test("annotations that would change how a confidential pod runs are refused by name, on the pod and on its containers", async (t) => {
	const names = [
		"hypervisor.kernel_params",
		"hypervisor.path",
		"hypervisor.kernel",
		"hypervisor.image",
		"hypervisor.default_vcpus",
		"hypervisor.default_memory",
		"hypervisor.enable_debug",
		"hypervisor.firmware",
		"hypervisor.shared_fs",
		"agent.policy",
		"agent.enable_tracing",
		"runtime.disable_guest_seccomp",
		"runtime.cc_init_data",
		"hypervisor.of_a_later_version",
	].map((name) => `io.katacontainers.config.${name}`);
	for (const mode of ["snp", "sample"] as const) {
		for (const name of names)
			t.throws(
				() => planConfidential("p", { ...annotations, [name]: "true" }, configOf(mode), 1),
				{ reason: "confidential.annotation", message: name },
				name,
			);
		t.throws(() => checkAnnotations("container c", { [names[0] ?? ""]: "x" }, mode), { message: /^container c is confidential/ });
		const all = Object.fromEntries(names.map((name) => [name, "x"]));
		t.throws(() => checkAnnotations("pod p", all, mode), { message: /the annotations .* and 9 more: / });
		checkAnnotations("container c", annotations, mode);
	}
	t.throws(() => checkAnnotations("pod p", { "io.katacontainers.config.agent.policy": "x" }, "snp"), {
		message: /agent\.policy/,
		remedy: /into the initdata, as policy\.rego/,
	});
});

t.test("no annotation reaches the mode: it is the configuration's", async (t) => {
	for (const mode of MODES) t.equal(planConfidential("p", mode === "off" ? {} : annotations, configOf(mode), 1)?.mode ?? "off", mode);
});

t.test("failures of pods in sample mode say that it is insecure, once; others are as they are", async (t) => {
	const failure = new ShimError("guest.call", "no", { remedy: "do", cause: new Error("why") });
	t.equal(marked(failure, "snp"), failure);
	t.equal(marked(failure, "off"), failure);
	const told = marked(failure, "sample");
	t.match(told, { reason: "guest.call", message: "sample mode, INSECURE: no", remedy: "do", cause: { message: "why" } });
	t.equal(marked(told, "sample"), told);
	t.equal(marked("text", "sample"), "text");
});
