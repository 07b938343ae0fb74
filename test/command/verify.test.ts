/** `snpctl verify`: from a report to commit, policy and images; with chains and reports that the test signs itself. */

import { createHash, createPrivateKey } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";

import { signAmd } from "../../shim/attest/amd-ecdsa.ts";
import type { GuestManifest } from "../../shim/attest/guest-manifest.ts";
import { measureIgvmOnKvm } from "../../shim/attest/measure/igvm-launch.ts";
import { parseIgvm } from "../../shim/attest/measure/igvm.ts";
import { sampleMeasurement } from "../../shim/attest/measure/sample.ts";
import { verify } from "../../shim/command/verify.ts";
import { bindOnlyInitdata } from "../../shim/policy/bind-only.ts";
import { policyText } from "../../shim/policy/generate.ts";
import { encodeInitdata, makeInitdata } from "../../shim/policy/initdata.ts";
import type { PolicyData } from "../../shim/policy/policy-data.ts";
import { directives } from "../attest/measure/igvm-cases.ts";
import { failing } from "../base/failing.ts";
import { makeChain, makeReport } from "../support/amd-chain.ts";
import { igvmPlatform, igvmPolicy, makeIgvm } from "../support/firmware.ts";
import { repositoryDir } from "../support/paths.ts";

const SPEC = { line: "Milan", key: "vcek", tcb: Buffer.from("0300000000000873", "hex"), chipId: Buffer.alloc(64, 9) } as const;
const COMMAND_LINE = "panic=-1 quiet";
const KERNEL = Buffer.alloc(8192, 7);
const SAMPLE_KERNEL = Buffer.alloc(8192, 8);
const [INITRAMFS, SAMPLE] = [Buffer.from("initramfs"), Buffer.from("sample")];
const REVISION = "12".repeat(20);
const ROOT = { web: ["ab".repeat(32), "cd".repeat(32)], log: ["ef".repeat(32)] };
const sha256 = (data: Buffer): string => createHash("sha256").update(data).digest("hex");
const output = (name: string, data: Buffer) => ({ name, sha256: sha256(data), bytes: data.length });

const manifest: GuestManifest = {
	version: 1,
	source: { revision: REVISION, changed: [] },
	commandLine: COMMAND_LINE,
	kernel: { outputs: [output("bzImage", KERNEL), output("vmlinux", SAMPLE_KERNEL)], inputs: [], tools: [], recipe: "1" },
	initramfs: { outputs: [output("initramfs", INITRAMFS), output("initramfs-sample-insecure", SAMPLE)], inputs: [], tools: [], recipe: "2" },
};
const policyData = {
	containers: Object.entries(ROOT).map(([name, hashes]) => ({ name, layers: hashes.map((root_hash) => ({ root_hash })) })),
};
const generated = policyText(policyData as unknown as PolicyData);
const initdata = makeInitdata({ algorithm: "sha384", data: { "policy.rego": generated } });
const igvm = makeIgvm([igvmPlatform(), igvmPolicy(0x30000n), ...directives(31)]);
const measured = measureIgvmOnKvm(parseIgvm(igvm, "i"), { kernel: KERNEL, initramfs: INITRAMFS, commandLine: COMMAND_LINE }, [1, 3]);

/** Files for one verification in a folder. */
function place(t: Test) {
	const folder = t.testdir();
	let files = 0;
	const file = (name: string, data: Buffer | string): string => {
		const path = join(folder, `${files++}-${name}`);
		writeFileSync(path, data);
		return path;
	};
	const chain = makeChain(SPEC);
	const fill = (report: Buffer, measurement: Buffer, hostData: string): void => {
		measurement.copy(report, 0x90);
		Buffer.from(hostData, "hex").copy(report, 0xc0);
	};
	return {
		file,
		report: (change: { measurement?: Buffer; hostData?: string; reportData?: Buffer } = {}): string =>
			file(
				"report",
				makeReport(3, SPEC, (report) => {
					fill(report, change.measurement ?? measured.get(3) ?? Buffer.alloc(48), change.hostData ?? initdata.hostData);
					change.reportData?.copy(report, 0x50);
				}),
			),
		/** Signed as the agent of sample mode does it. */
		sampleReport: (measurement: Buffer, late?: { hostData: string; reportData: Buffer }): string => {
			const key = "guest/agent/keys/sample-insecure.pem";
			const bytes = makeReport(3, SPEC, (report) => {
				fill(report, measurement, late?.hostData ?? initdata.hostData);
				late?.reportData.copy(report, 0x50);
			});
			signAmd(createPrivateKey(readFileSync(join(repositoryDir, key))), bytes.subarray(0, 0x2a0)).copy(bytes, 0x2a0);
			return file("report", bytes);
		},
		common: ["--manifest", file("guest-manifest.json", JSON.stringify(manifest)), "--initdata", file("initdata", encodeInitdata(initdata))],
		snp: [
			...[
				"--igvm",
				file("guest.igvm", igvm),
				"--certificates",
				file("vcek", chain.endorsement),
				"--certificates",
				file("ask", chain.intermediate),
			],
			...["--trust-root", file("ark", chain.ark)],
		],
	};
}

/** What a guest answers at /layers. */
const opened = (layers: readonly string[]): string =>
	JSON.stringify({ platform: "snp", containers: [{ container: "77".repeat(32), layers }] });

/** What it prints, and its exit code. */
async function run(t: Test, ...args: readonly string[]): Promise<{ code: number; out: string }> {
	const captured = t.capture(process.stdout, "write", () => true);
	try {
		const code = await verify(args);
		return {
			code,
			out: captured()
				.map(({ args: [text] }) => String(text))
				.join(""),
		};
	} finally {
		captured.restore();
	}
}

t.test("a genuine report leads to manifest, commit, policy and images in one command", async (t) => {
	const { report, common, snp, file } = place(t);
	const { code, out } = await run(t, report(), ...common, ...snp);
	t.equal(code, 0, out);
	t.match(out, /^VERIFIED: .* is genuine/);
	for (const line of [
		new RegExp(`^passed +guest +.*: 3 processors; bzImage ${sha256(KERNEL)}, initramfs ${sha256(INITRAMFS)}$`, "m"),
		new RegExp(`^passed +source +.*: ${REVISION}$`, "m"),
		new RegExp(`^passed +host-data +.*: ${initdata.hostData}$`, "m"),
		new RegExp(`^passed +policy +.*SHA-256 ${sha256(Buffer.from(generated))}$`, "m"),
		new RegExp(`^passed +layers +.*: web: ${ROOT.web.join(" ")}; log: ${ROOT.log.join(" ")}$`, "m"),
	])
		t.match(out, line);
	t.notMatch(out, /INSECURE/);
	const toml = file("initdata.toml", Buffer.from(initdata.toml));
	t.equal((await run(t, report(), ...common.slice(0, 2), "--initdata", toml, ...snp)).code, 0, "the TOML serves as well");
	const json = JSON.parse((await run(t, report(), ...common, ...snp, "--json")).out) as Record<string, unknown>;
	t.match(json, { verified: true, platform: "snp" });
});

t.test("the first thing that leads elsewhere is named, with exit code 3", async (t) => {
	const { report, common, snp, file } = place(t);
	const other = (changes: Partial<GuestManifest>): string[] => [
		"--manifest",
		file("other.json", JSON.stringify({ ...manifest, ...changes })),
		...common.slice(2),
	];
	const cases: readonly (readonly [string, readonly string[]])[] = [
		["guest", [report({ measurement: Buffer.alloc(48, 1) }), ...common, ...snp]],
		["guest", [report(), ...common, ...snp, "--vcpus", "1-2"]],
		["guest", [report(), ...common, ...snp, "--cmdline", `${COMMAND_LINE} init=/bin/sh`]],
		["guest", [report(), ...other({ kernel: { ...manifest.kernel, outputs: [output("bzImage", SAMPLE)] } }), ...snp]],
		["source", [report(), ...other({ source: { revision: REVISION, changed: ["guest/agent/src/main.rs"] } }), ...snp]],
		["source", [report(), ...other({ source: { revision: null, changed: [] } }), ...snp]],
		["host-data", [report({ hostData: "00".repeat(32) }), ...common, ...snp]],
		["report-data", [report(), ...common, ...snp, "--report-data", "0102"]],
		["layers", [report(), ...common, ...snp, "--opened", file("opened", opened([ROOT.web[0] ?? "", "99".repeat(32)]))]],
	];
	for (const [name, args] of cases) {
		const { code, out } = await run(t, ...args);
		t.equal(code, 3, `${name}: ${out}`);
		t.match(out, new RegExp(`^  failed +${name}: `, "m"), name);
	}
	t.equal((await run(t, report(), ...common, ...snp, "--opened", file("opened", opened(ROOT.log)))).code, 0);
	const flipped = readFileSync(report());
	flipped[0x91] = (flipped[0x91] ?? 0) ^ 1;
	t.match(await run(t, file("report", flipped), ...common, ...snp), { code: 2, out: /failed +report\.signature/ });
});

t.test(
	"a policy that was bound late is taken only by its name, and only with the question and the policy that the report covers",
	async (t) => {
		const { report, sampleReport, common, snp, file } = place(t);
		const nonce = Buffer.alloc(64);
		nonce.write("nonce");
		const question = Buffer.from("nonce").toString("hex");
		const covering = (digest: string, domain = "containerd-shim-snp late-bound report data 1\n", asked = nonce): Buffer =>
			createHash("sha512").update(domain).update(asked).update(Buffer.from(digest, "hex")).digest();
		const { hostData } = bindOnlyInitdata();
		const late = { hostData, reportData: covering(initdata.hostData) };
		const asked = [...common, ...snp, "--report-data", question];
		const { code, out } = await run(t, report(late), ...asked, "--late-bound");
		t.equal(code, 0, out);
		t.match(out, new RegExp(`^passed +host-data +.*: ${hostData}, of guests that take one policy later$`, "m"));
		t.match(out, new RegExp(`^passed +report-data +.*: the question, and the bound initdata ${initdata.hostData}$`, "m"));
		t.match(out, /^passed +policy +.*SHA-256/m);
		const other = makeInitdata({ algorithm: "sha256", data: { "policy.rego": "package agent_policy\n" } });
		const plain = { hostData, reportData: nonce };
		const cases: readonly (readonly [string, string, readonly string[]])[] = [
			["bound late, and not asked for by that name", "host-data", [report(late), ...asked]],
			["the bind-only initdata itself as the policy", "host-data", [report(plain), ...common.slice(0, 2), ...snp, "--host-data", hostData]],
			["a guest with a policy of its own", "host-data", [report({ reportData: nonce }), ...asked, "--late-bound"]],
			[
				"a guest with a policy of its own that hashes as if",
				"host-data",
				[report({ reportData: late.reportData }), ...asked, "--late-bound"],
			],
			["another policy", "report-data", [report({ hostData, reportData: covering(other.hostData) }), ...asked, "--late-bound"]],
			["another question", "report-data", [report(late), ...common, ...snp, "--report-data", "00", "--late-bound"]],
			["the question alone", "report-data", [report(plain), ...asked, "--late-bound"]],
			["another domain", "report-data", [report({ hostData, reportData: covering(initdata.hostData, "") }), ...asked, "--late-bound"]],
			["nothing bound", "report-data", [report({ hostData }), ...asked, "--late-bound"]],
			["another guest", "guest", [report({ ...late, measurement: Buffer.alloc(48, 1) }), ...asked, "--late-bound"]],
		];
		for (const [what, name, args] of cases) {
			const refused = await run(t, ...args);
			t.equal(refused.code, 3, `${what}: ${refused.out}`);
			t.match(refused.out, new RegExp(`^  failed +${name}: `, "m"), what);
		}
		t.match((await run(t, report(late), ...asked)).out, /--late-bound takes it/);
		const evidence = JSON.stringify({
			report: readFileSync(report({ hostData, reportData: covering(other.hostData) })).toString("base64"),
			late_bound: { initdata_digest: other.hostData },
		});
		t.match(
			(await run(t, file("evidence", evidence), ...asked, "--late-bound")).out,
			`the guest says that its initdata is ${other.hostData}`,
		);
		for (const args of [
			[...common, ...snp],
			[...common.slice(0, 2), ...snp, "--report-data", question],
		])
			await t.rejects(
				verify([report(late), ...args, "--late-bound"]),
				failing({ reason: "call.invalid", message: /--late-bound needs the initdata's digest and the question/ }),
			);

		const launch = { kernel: sha256(SAMPLE_KERNEL), initramfs: sha256(SAMPLE), commandLine: COMMAND_LINE };
		const sample = sampleReport(Buffer.from(sampleMeasurement(launch), "hex"), late);
		t.match(await run(t, sample, ...common, "--sample", "--report-data", question, "--late-bound"), { code: 0, out: /INSECURE/ });
		t.match(await run(t, sample, ...common, "--sample", "--report-data", question), { code: 3, out: /failed +host-data: / });
		t.match(await run(t, sample, ...common, "--sample", "--report-data", "00", "--late-bound"), { code: 3, out: /failed +report-data: / });
	},
);

t.test("a policy with rules of its own names no images, and that is said", async (t) => {
	const { report, common, snp, file } = place(t);
	for (const text of [
		"package agent_policy\ndefault AllowRequestsFailingPolicy := true\n",
		`package agent_policy\nCreateContainerRequest := true\n\npolicy_data := ${JSON.stringify(policyData)}\n`,
		generated.replace("package agent_policy\n", "package agent_policy\nExecProcessRequest := true\n"),
		`${generated}\nExecProcessRequest := true\n`,
	]) {
		const byHand = makeInitdata({ algorithm: "sha256", data: { "policy.rego": text } });
		const args = [report({ hostData: byHand.hostData }), ...common.slice(0, 2), "--initdata", file("hand", encodeInitdata(byHand)), ...snp];
		t.match(await run(t, ...args), { code: 0, out: /^not asked for: .*layers/m });
	}
});

t.test("nothing is verified without the policy, and not with two", async (t) => {
	const { report, common, snp } = place(t);
	const without = [report(), ...common.slice(0, 2), ...snp];
	await t.rejects(verify(without), failing({ reason: "call.invalid", message: /verify needs --initdata \(or --host-data\)/ }));
	t.equal((await run(t, ...without, "--host-data", initdata.hostData)).code, 0);
	await t.rejects(
		verify([...without, ...common.slice(2), "--host-data", "00".repeat(32)]),
		failing({ reason: "call.invalid", message: /--initdata or --host-data, not both/ }),
	);
});

t.test("sample mode is taken only by its name, and says INSECURE each time; a processor's report is never taken for one", async (t) => {
	const { report, sampleReport, common, snp } = place(t);
	const launch = { kernel: sha256(SAMPLE_KERNEL), initramfs: sha256(SAMPLE), commandLine: COMMAND_LINE };
	const measurement = Buffer.from(sampleMeasurement(launch), "hex");
	const { code, out } = await run(t, sampleReport(measurement), ...common, "--sample");
	t.equal(code, 0, out);
	t.match(out, new RegExp(`^passed +guest +.*sample mode; .*initramfs-sample-insecure ${sha256(SAMPLE)}$`, "m"));
	t.match(out, /INSECURE: sample mode proves nothing, its key is published$/m);
	t.match(JSON.parse((await run(t, sampleReport(measurement), ...common, "--sample", "--json")).out), {
		platform: "sample-INSECURE",
		verified: true,
	});
	t.match(await run(t, sampleReport(Buffer.alloc(48, 3)), ...common, "--sample"), { code: 3, out: /failed +guest: [\s\S]*INSECURE/ });
	await t.rejects(
		run(t, sampleReport(measurement), ...common, ...snp),
		failing({ reason: "attest.report", message: /sample mode: INSECURE/ }),
	);
	for (const foreign of ["--min-tcb", "--measurement", "--igvm", "--id-key-digest"])
		await t.rejects(run(t, sampleReport(measurement), ...common, "--sample", foreign, "00"), {
			reason: "call.invalid",
			message: new RegExp(`^${foreign} asks what a report of sample mode can't answer`, "u"),
		});
	t.match(await run(t, report(), ...common, "--sample"), { code: 2, out: /failed +report\.signature/ });
});

t.test("wrong use is said, with how it is used", async (t) => {
	const { report, common } = place(t);
	for (const args of [[], [report()], [report(), ...common], [report(), "more", ...common], ["--what"]])
		await t.rejects(verify(args), failing({ reason: "call.invalid", remedy: /usage: snpctl verify REPORT/ }), args.join(" "));
	await t.rejects(
		verify([report(), "--manifest", report(), "--sample"]),
		failing({ reason: "attest.manifest", message: /is no manifest/ }),
	);
});
