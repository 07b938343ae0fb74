/** Confidential pods that the host must refuse: each with a sentence that names what is wrong, and nothing is left; never an ordinary VM in their place. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { encodeInitdata, INITDATA_ANNOTATION, makeInitdata } from "../../shim/policy/initdata.ts";
import type { ConformanceCase } from "../conformance/context.ts";
import { runSuite } from "../conformance/suite.ts";
import { SNP_HANDLER, SNP_SANDBOX_HANDLER } from "../support/cri/containerd-config.ts";
import { directives } from "../attest/measure/igvm-cases.ts";
import { distShareDir } from "../support/paths.ts";
import { buildFalseVmm } from "../support/false-vmm.ts";
import { igvmPlatform, igvmPolicy, makeIgvm } from "../support/firmware.ts";
import { runCases, type Bed, type Case } from "../support/fixture.ts";
import { readTimeline } from "../support/timeline.ts";

const KERNEL_PARAMETERS = "io.katacontainers.config.hypervisor.kernel_params";
const initdata = encodeInitdata(makeInitdata({ algorithm: "sha256", data: { "policy.rego": "package agent_policy\n" } }));
const INITDATA = ["--annotation", `${INITDATA_ANNOTATION}=${initdata}`];
const SEED = 22;

/** What a refusal is made from. */
interface Refusal {
	readonly mode: "off" | "snp" | "sample";
	readonly flags?: readonly string[];
	readonly hypervisor?: string;
	readonly igvm?: Buffer;
	/** Further lines of the configuration. */
	readonly lines?: string;
	readonly texts: readonly RegExp[];
	/** Steps of the start that must not have been reached. */
	readonly neverStep?: string;
}

async function refused(t: Test, bed: Bed, refusal: Refusal): Promise<void> {
	const { containerd, ctr } = bed;
	const igvm = join(containerd.rootDir, "guest.igvm");
	writeFileSync(igvm, refusal.igvm ?? makeIgvm([igvmPlatform(), igvmPolicy(0x30000n), ...directives(SEED)]));
	const append = `${refusal.lines ?? ""}\n[confidential]\nmode = "${refusal.mode}"\nigvm = ${JSON.stringify(igvm)}\nkernel = ${JSON.stringify(join(distShareDir, "bzImage"))}\n`;
	await containerd.configure({
		layers: true,
		append,
		...(refusal.hypervisor === undefined ? {} : { hypervisor: refusal.hypervisor }),
	});
	const id = ctr.newId("confidential");
	try {
		const finished = await ctr.run(id, ["true"], { flags: refusal.flags ?? INITDATA });
		t.not(finished.code, 0, "the run fails");
		for (const text of refusal.texts) t.match(finished.stderr, text);
		if (refusal.neverStep === undefined) return;
		const steps = (await readTimeline(containerd, id)).map(({ step }) => step);
		t.notOk(steps.includes(refusal.neverStep), `${steps.join(" ")} without ${refusal.neverStep}`);
	} finally {
		await containerd.configure({});
	}
}

const one = (name: string, refusal: Refusal): Case => ({ name, vmOnly: true, check: (t, bed) => refused(t, bed, refusal) });

const cases: Case[] = [
	one("initdata for a runtime class that is not confidential is refused by name, with what to use", {
		mode: "off",
		texts: [new RegExp(`annotation ${INITDATA_ANNOTATION}: this runtime class is not confidential`), /confidential\.mode = "snp"/],
	}),
	one("a hypervisor without SEV-SNP is refused before a VM is made, and no ordinary VM takes its place", {
		mode: "snp",
		texts: [/was built without sev_snp/, /an ordinary VM that its host can read/, /kvm,igvm,sev_snp,fw_cfg/],
		neverStep: "vm-create",
	}),
	one("an IGVM file that is cut is refused before the hypervisor is started", {
		mode: "snp",
		igvm: makeIgvm([igvmPlatform(), igvmPolicy(0x30000n), ...directives(SEED)]).subarray(0, 4097),
		texts: [/guest\.igvm: it says that it has \d+ bytes, and has 4097/, /confidential\.igvm/],
		neverStep: "vmm-launch",
	}),
	one("a confidential pod without initdata, or with what is none, is refused with the remedy", {
		mode: "snp",
		flags: [],
		texts: [new RegExp(`no annotation ${INITDATA_ANNOTATION}`), /pod_annotations/],
		neverStep: "vmm-launch",
	}),
	one("initdata that is damaged is refused", {
		mode: "sample",
		flags: ["--annotation", `${INITDATA_ANNOTATION}=${initdata.slice(0, -8)}`],
		texts: [/the initdata is not packed with gzip/, /sample mode, INSECURE: /],
		neverStep: "vmm-launch",
	}),
	one("an annotation that would change how a confidential pod runs is named", {
		mode: "snp",
		flags: [...INITDATA, "--annotation", `${KERNEL_PARAMETERS}=init=/bin/sh`],
		texts: [new RegExp(`the annotation ${KERNEL_PARAMETERS}`), /annotations can't change how it runs/],
		neverStep: "vmm-launch",
	}),
	one("a console and confidential pods exclude each other: both keys are named", {
		mode: "snp",
		lines: "[debug]\nconsole = true",
		texts: [/confidential\.mode = "snp" needs debug\.console = false/, /configuration file of their own/],
	}),
	one("a missing image for sample mode is named, with its key", {
		mode: "sample",
		texts: [/initramfs-sample-insecure/, /confidential\.sample_image/, /INSECURE/],
		neverStep: "vmm-launch",
	}),
	{
		name: "a hypervisor that claims SEV-SNP on a node without it: the node is named, and no VM is booted",
		vmOnly: true,
		check: async (t, bed) => {
			const hypervisor = buildFalseVmm(bed.containerd.rootDir);
			await refused(t, bed, {
				mode: "snp",
				hypervisor,
				// A node that has SEV-SNP gets as far as the false hypervisor's own refusal.
				texts: [/this node can't start a confidential VM: .*(SEV-SNP|\/dev\/sev)|this program starts no VM/],
			});
		},
	},
];

/** The same of Kubernetes' pods: their annotations come in two ways. */
const POD_CASES: readonly ConformanceCase[] = [
	{
		id: "initdata-ordinary",
		name: "a pod with initdata under a runtime class that is not confidential is refused by name, and its annotations reach us",
		check: async (context) => {
			await assert.rejects(context.pod({ annotations: { [INITDATA_ANNOTATION]: initdata } }), /this runtime class is not confidential/);
			await context.pod({ annotations: { "example.com/note": "fine" } });
		},
	},
];

await runCases(cases, { withControl: false });
await runSuite({
	versions: ["2"],
	handlers: [SNP_HANDLER, SNP_SANDBOX_HANDLER],
	cases: POD_CASES,
	onOutcome: ({ caseId, handler, failure }) => t.equal(failure, undefined, `${caseId} (${handler})`),
});
