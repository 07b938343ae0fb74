/** What a confidential guest does for its host, in sample mode: the pod's policy in force, evidence for applications, and nothing at all without an initdata that it can trust. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { readReport } from "../../shim/attest/evidence-input.ts";
import { isSampleReport } from "../../shim/attest/sample-report.ts";
import { initdataImage, INITDATA_DISK } from "../../shim/pod/initdata-disk.ts";
import { bindOnlyInitdata } from "../../shim/policy/bind-only.ts";
import { policyText } from "../../shim/policy/generate.ts";
import { encodeInitdata, INITDATA_ANNOTATION, makeInitdata } from "../../shim/policy/initdata.ts";
import type { Initdata } from "../../shim/policy/initdata.ts";
import { runCases, type Bed, type Case } from "../support/fixture.ts";
import { GuestVm } from "../support/guest-vm.ts";
import { distShareDir } from "../support/paths.ts";
import { recordedPolicy } from "../support/policy.ts";

const SAMPLE_IMAGE = join(distShareDir, "initramfs-sample-insecure");
/** What snpd needs for any pod. */
const ALWAYS = [
	"GuestDetailsRequest",
	"CreateSandboxRequest",
	"UpdateInterfaceRequest",
	"UpdateRoutesRequest",
	"AddARPNeighborsRequest",
	"OnlineCPUMemRequest",
	"GetOOMEventRequest",
	"NextDamageRequest",
	"ContainerDamageRequest",
	"StartContainerRequest",
	"WaitProcessRequest",
	"SignalProcessRequest",
	"StatsContainerRequest",
	"RemoveContainerRequest",
	"CopyFileRequest",
	"ChangeRequest",
	"ListRequest",
	"CloseStdinRequest",
	"TtyWinResizeRequest",
	"DestroySandboxRequest",
].map((name) => `${name} := true`);
/** A container whose first word is not `sh` is denied, and told why. */
const POLICY = [
	"package agent_policy",
	...ALWAYS,
	"CreateContainerRequest if count(CreateContainerRequest_reasons) == 0",
	'CreateContainerRequest_reasons contains {"path": "OCI.Process.Args[0]", "expected": "sh", "got": input.OCI.Process.Args[0]} if input.OCI.Process.Args[0] != "sh"',
];
/** Of the pod whose policy is bound late. */
const HOSTNAME = "recorded-host";
const LOGS = "ReadStreamRequest := true";

const initdataOf = (lines: readonly string[]): Initdata =>
	makeInitdata({ algorithm: "sha384", data: { "policy.rego": `${lines.join("\n")}\n` } });
const annotated = (initdata: Initdata): string[] => ["--annotation", `${INITDATA_ANNOTATION}=${encodeInitdata(initdata)}`];

/** Runs what needs a node of sample mode. */
async function inSampleMode(bed: Bed, work: () => Promise<void>): Promise<void> {
	const append = `[confidential]\nmode = "sample"\nsample_image = ${JSON.stringify(SAMPLE_IMAGE)}\n`;
	await bed.containerd.configure({ layers: true, append });
	try {
		await work();
	} finally {
		await bed.containerd.configure({});
	}
}

const one = (name: string, check: (t: Test, bed: Bed) => Promise<void>): Case => ({
	name,
	vmOnly: true,
	check: async (t, bed) => await inSampleMode(bed, async () => await check(t, bed)),
});

const cases: Case[] = [
	one("a container that the policy allows runs, and fetches evidence of policy and layers", async (t, { ctr }) => {
		const initdata = initdataOf([...POLICY, LOGS]);
		const get = (path: string): string => `busybox wget -qO- 'http://127.0.0.1:8006${path}' && echo`;
		const script = ["/aa/evidence?runtime_data=nonce", "/layers", "/initdata"].map(get).join(" && ");
		const { code, stdout, stderr } = await ctr.run(ctr.newId("evidence"), ["sh", "-c", script], { flags: annotated(initdata) });
		t.equal(code, 0, stderr);
		const [first = "", second = "", ...rest] = stdout.split("\n");
		const evidence = JSON.parse(first) as { platform: string; report: string; attestation_report: { host_data: number[] } };
		t.equal(evidence.platform, "sample-INSECURE");
		const { report } = readReport({ name: "evidence", bytes: Buffer.from(evidence.report, "base64") });
		t.ok(isSampleReport(report), "it is signed with the published key");
		t.equal(report.hostData.toString("hex"), initdata.hostData);
		t.equal(Buffer.from(evidence.attestation_report.host_data).toString("hex"), initdata.hostData);
		t.equal(report.reportData.toString("latin1"), "nonce".padEnd(64, "\0"));
		t.match(report.measurement.toString("hex"), /^(?!0{96})[0-9a-f]{96}$/);
		const layers = JSON.parse(second) as { containers: { layers: string[] }[] };
		t.match(layers.containers[0]?.layers ?? [], [/^[0-9a-f]{64}$/], "layers that are checked have their root hashes");
		t.equal(rest.join("\n").trimEnd(), Buffer.from(initdata.toml).toString().trimEnd());
	}),
	one("what the policy denies is said with path, expected and got, and never starts", async (t, { ctr }) => {
		const { code, stderr } = await ctr.run(ctr.newId("denied"), ["cat"], { flags: annotated(initdataOf(POLICY)) });
		t.not(code, 0);
		t.match(stderr, /denies CreateContainerRequest: OCI\.Process\.Args\[0\]: expected "sh", got "cat"/);
	}),
	one("exec is denied, and output that the host may not read blocks nobody", async (t, { ctr }) => {
		const flags = annotated(initdataOf(POLICY));
		const silent = await ctr.run(ctr.newId("silent"), ["sh", "-c", "yes hidden | head -c 1000000; exit 7"], { flags });
		t.same([silent.code, silent.stdout], [7, ""], silent.stderr);
		const id = ctr.newId("exec");
		await ctr.detach(id, ["sh", "-c", "sleep 1000"], { flags });
		const { code, stderr } = await ctr.exec(id, ["sh"]);
		t.not(code, 0);
		t.match(stderr, /the pod's policy denies ExecProcessRequest/);
		await ctr.removeLeftover(id);
	}),
	one("a policy with a mistake is named with its place, and nothing starts", async (t, { ctr }) => {
		const initdata = initdataOf(["package agent_policy", "CreateSandboxRequest := := true"]);
		const { code, stderr } = await ctr.run(ctr.newId("mistake"), ["sh"], { flags: annotated(initdata) });
		t.not(code, 0);
		t.match(stderr, /policy in its initdata can't be used: line 2, column 25/);
	}),
];

/** Boots a guest with an initdata disk (none when undefined). */
async function boot(t: Test, disk: Buffer | undefined, hostData: string): Promise<GuestVm> {
	const folder = mkdtempSync(join(tmpdir(), "snp-initdata-"));
	t.teardown(() => rmSync(folder, { recursive: true, force: true }));
	const path = join(folder, "initdata.img");
	if (disk !== undefined) writeFileSync(path, disk);
	const disks = disk === undefined ? [] : [{ id: INITDATA_DISK, path, readonly: true, serial: INITDATA_DISK }];
	return await GuestVm.bootBare(t, disks, { initramfs: SAMPLE_IMAGE, parameters: `snp.sample_host_data=${hostData}` });
}

/** What a guest answers when it is asked for a sandbox. */
async function answer({ agent }: GuestVm, hostname = "vm"): Promise<string> {
	const made = agent.createSandbox({ hostname, dns: [], storages: [], sandbox_pidns: false, sandbox_id: "vm" });
	return await made.then(
		() => "a sandbox",
		(error: unknown) => String(error),
	);
}

t.test("the guest of ordinary and of SNP pods has no code for samples", (t) => {
	for (const mark of ["snp.sample_host_data", "INSECURE: this guest", "BEGIN PRIVATE KEY"]) {
		t.ok(readFileSync(SAMPLE_IMAGE).includes(mark), `${mark} is in the image of sample mode`);
		t.notOk(readFileSync(join(distShareDir, "initramfs")).includes(mark), `${mark} is in no other`);
	}
	t.end();
});

await runCases(cases, { withControl: false });

t.test("a guest whose initdata is missing, another one, or cut does nothing for its host", async (t) => {
	const initdata = initdataOf(POLICY);
	const image = initdataImage(initdata.gzip);
	t.match(await answer(await boot(t, undefined, initdata.hostData)), /it has no initdata/);
	t.match(await answer(await boot(t, image, "ab".repeat(32))), /is not the one that its attestation report names \(HOST_DATA abab/);
	const cut = Buffer.from(image);
	cut.writeBigUInt64LE(BigInt(image.length), 8);
	t.match(await answer(await boot(t, cut, initdata.hostData)), /the disk ends after/);
});

t.test("a guest that waits takes its pod's policy once, and makes nothing before", async (t) => {
	const known = bindOnlyInitdata();
	const { text, data } = recordedPolicy();
	const ordinary = policyText({ ...data, containers: data.containers.filter(({ privileged }) => !privileged) });
	const [privileged, initdata] = [text, ordinary].map((policy) => makeInitdata({ algorithm: "sha256", data: { "policy.rego": policy } }));
	if (privileged === undefined || initdata === undefined) throw new Error("two policies");
	const vm = await boot(t, initdataImage(known.gzip), known.hostData);
	const waits = async (): Promise<void> => {
		t.match(await answer(vm, HOSTNAME), /this guest waits for its pod's policy/);
	};
	await waits();
	await t.rejects(vm.agent.bindPolicy(initdataOf(POLICY).gzip), { reason: "guest.call", message: /fixed rules of this guest's release/ });
	await t.rejects(vm.agent.bindPolicy(privileged.gzip), { reason: "guest.call", message: /container shell: it is privileged/ });
	await waits();
	await vm.agent.bindPolicy(initdata.gzip);
	t.match(await answer(vm, "another"), /denies CreateSandboxRequest: hostname/, "its policy is in force");
	t.equal(await answer(vm, HOSTNAME), "a sandbox");
	await t.rejects(vm.agent.bindPolicy(initdata.gzip), { reason: "policy.denied", message: /BindPolicyRequest/ });
});
