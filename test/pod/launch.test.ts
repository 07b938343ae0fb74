/** What is looked at before a confidential VM is launched: the IGVM file, the program, the machine; and what is left when one of them won't do. */

import { createHash, createPrivateKey } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";

import { signIdBlock } from "../../shim/attest/measure/id-block.ts";
import { measureIgvmOnKvm } from "../../shim/attest/measure/igvm-launch.ts";
import { addIdBlock } from "../../shim/attest/measure/igvm-write.ts";
import { parseIgvm } from "../../shim/attest/measure/igvm.ts";
import { sampleMeasurement } from "../../shim/attest/measure/sample.ts";
import { Log } from "../../shim/base/log.ts";
import { Scope } from "../../shim/base/scope.ts";
import { defaultConfig } from "../../shim/config/schema.ts";
import type { Config } from "../../shim/config/schema.ts";
import { HostCgroup } from "../../shim/host/cgroups.ts";
import { findProcesses } from "../../shim/host/processes.ts";
import { bootMachine } from "../../shim/pod/boot.ts";
import { writeInitdataDisk } from "../../shim/pod/initdata-disk.ts";
import { readyPlan } from "../../shim/pod/launch.ts";
import { planPod } from "../../shim/pod/plan.ts";
import type { PodPlan } from "../../shim/pod/plan.ts";
import { Timeline } from "../../shim/pod/timeline.ts";
import { encodeInitdata, INITDATA_ANNOTATION, makeInitdata } from "../../shim/policy/initdata.ts";
import { API_SOCKET_OPTION } from "../../shim/vmm/launcher.ts";
import { directives } from "../attest/measure/igvm-cases.ts";
import { failing } from "../base/failing.ts";
import { fixture } from "../support/amd-chain.ts";
import { buildFalseVmm } from "../support/false-vmm.ts";
import type { FalseVmm } from "../support/false-vmm.ts";
import { igvmPlatform, igvmPolicy, makeIgvm } from "../support/firmware.ts";

const NODE = { vcpus: 8, memoryMib: 16_384 };
const POLICY = 0x30000n;
const initdata = makeInitdata({ algorithm: "sha256", data: { "policy.rego": "package agent_policy\n" } });
const igvmFile = (policy = POLICY): Buffer => makeIgvm([igvmPlatform(), igvmPolicy(policy), ...directives(21)]);

/** A confidential pod's plan from files in a folder. */
function planIn(folder: string, igvm: Buffer, changes: Partial<Config["confidential"]> = {}, hypervisor = "/none"): PodPlan {
	const path = (name: string): string => join(folder, name);
	const kernel = Buffer.alloc(8192, 7);
	kernel.write("HdrS", 0x202);
	writeFileSync(path("kernel"), kernel);
	writeFileSync(path("initramfs"), "initramfs");
	writeFileSync(path("sample"), "sample");
	writeFileSync(path("guest-1.igvm"), igvm);
	const config = defaultConfig();
	const spec = { linux: { namespaces: [{ type: "network" }] }, annotations: { [INITDATA_ANNOTATION]: encodeInitdata(initdata) } };
	const wanted: Config = {
		...config,
		hypervisor: { ...config.hypervisor, path: hypervisor },
		guest: { ...config.guest, kernel: path("kernel"), image: path("initramfs") },
		storage: { ...config.storage, scratch: "memory" },
		confidential: { mode: "snp", igvm: path("guest-{vcpus}.igvm"), kernel: path("kernel"), sample_image: path("sample"), ...changes },
	};
	return planPod("p1", spec, wanted, folder, NODE);
}

t.test("a sound IGVM file is taken; one that is missing, cut, changed, too open, or none is named with what is wrong", async (t) => {
	const folder = t.testdir();
	const file = igvmFile();
	const plan = planIn(folder, file);
	t.equal(await readyPlan(plan), plan);
	const flipped = Buffer.from(file);
	flipped[40] = (flipped[40] ?? 0) ^ 1;
	const cases: readonly (readonly [string, Buffer, RegExp])[] = [
		["cut", file.subarray(0, file.length - 1), /it says that it has \d+ bytes/],
		["a header", file.subarray(0, 20), /it is no IGVM file/],
		["empty", Buffer.alloc(0), /it is no IGVM file/],
		["a kernel", Buffer.alloc(8192, 7), /it is no IGVM file/],
		["changed", flipped, /its checksum is wrong/],
		["another platform", makeIgvm([igvmPlatform(1), ...directives(21)]), /for no platform SEV-SNP/],
		["debugging", igvmFile(POLICY | (1n << 19n)), /lets the host debug the guest/],
		["migration", igvmFile(POLICY | (1n << 18n)), /migration agent/],
		["a policy of a later time", igvmFile(POLICY | (1n << 40n)), /bits above/],
	];
	for (const [name, bytes, message] of cases)
		await t.rejects(readyPlan(planIn(folder, bytes)), failing({ reason: "confidential.igvm", message }), name);
	const missing = planIn(folder, file, { igvm: join(folder, "none.igvm") });
	await t.rejects(
		readyPlan(missing),
		failing({ reason: "confidential.igvm", message: /none\.igvm can't be read: ENOENT/, remedy: /confidential\.igvm/ }),
	);
});

t.test(
	"an ID block must be for this pod's launch: other processors, kernels or command lines are refused before the processor would",
	async (t) => {
		const folder = t.testdir();
		const file = igvmFile();
		const plan = planIn(folder, file);
		const files = { kernel: readFileSync(plan.kernel), initramfs: readFileSync(plan.image), commandLine: plan.kernelParameters };
		const withBlock = (measurement: Buffer): Buffer => {
			const fields = { measurement, familyId: Buffer.alloc(16), imageId: Buffer.alloc(16), guestSvn: 0, guestPolicy: POLICY };
			return addIdBlock(file, signIdBlock(fields, createPrivateKey(fixture("id.test-key.pem")), undefined), "file");
		};
		const digests = measureIgvmOnKvm(parseIgvm(file, "file"), files, [1, 2]);
		const [own = Buffer.alloc(0), other = Buffer.alloc(0)] = [digests.get(1), digests.get(2)];
		const sound = planIn(folder, withBlock(own));
		t.equal(await readyPlan(sound), sound);
		const refusal = failing({
			reason: "confidential.igvm",
			message: new RegExp(`ID block.*${other.toString("hex")}; this pod's is ${own.toString("hex")}`),
			remedy: /--id-block/,
		});
		await t.rejects(readyPlan(planIn(folder, withBlock(other))), refusal);
		writeFileSync(join(folder, "initramfs"), "another");
		await t.rejects(readyPlan(sound), failing({ reason: "confidential.igvm", message: /ID block/ }));
	},
);

t.test("sample mode takes its own image, and tells the guest HOST_DATA and what stands for the measurement", async (t) => {
	const folder = t.testdir();
	const plan = planIn(folder, igvmFile(), { mode: "sample" });
	t.equal(plan.image, join(folder, "sample"));
	const ready = await readyPlan(plan);
	const sha256 = (data: Buffer): string => createHash("sha256").update(data).digest("hex");
	const measurement = sampleMeasurement({
		kernel: sha256(readFileSync(plan.kernel)),
		initramfs: sha256(readFileSync(plan.image)),
		commandLine: plan.kernelParameters,
	});
	t.match(measurement, /^[0-9a-f]{96}$/);
	t.equal(
		ready.kernelParameters,
		`${plan.kernelParameters} snp.sample_host_data=${initdata.hostData} snp.sample_measurement=${measurement}`,
	);
	rmSync(plan.image);
	await t.rejects(readyPlan(plan), failing({ reason: "guest.file-missing", remedy: /confidential\.sample_image/ }));
	t.notMatch((await readyPlan(planIn(folder, igvmFile()))).kernelParameters, /sample/, "a confidential guest is never told any of it");
});

t.test("a kernel that the first code of a confidential VM can't load is named with its key", async (t) => {
	const folder = t.testdir();
	const plan = planIn(folder, igvmFile());
	writeFileSync(plan.kernel, "\x7fELF");
	await t.rejects(
		readyPlan(plan),
		failing({ reason: "confidential.kernel", message: /kernel is no bzImage/, remedy: /confidential\.kernel/ }),
	);
	rmSync(plan.kernel);
	await t.rejects(readyPlan(plan), failing({ reason: "guest.file-missing", remedy: /confidential\.kernel/ }));
});

/** Boots under a false VMM; tells the calls that it got. */
async function boot(
	t: Test,
	behaviour: FalseVmm,
	parameter: string,
	message: RegExp,
	reason: "confidential.vmm" | "confidential.host" | "vmm.api" | "host.cgroup",
	cgroup?: HostCgroup,
): Promise<string[]> {
	const folder = mkdtempSync(join(tmpdir(), "launch-"));
	t.teardown(() => rmSync(folder, { recursive: true }));
	const plan = planIn(folder, igvmFile(), {}, buildFalseVmm(folder, behaviour));
	const places = { parameter: join(folder, "sev_snp"), device: join(folder, "sev") };
	writeFileSync(places.parameter, parameter);
	writeFileSync(places.device, "");
	const scope = new Scope("boot");
	const started: number[] = [];
	const booted = bootMachine({
		podId: "p1",
		folder,
		plan,
		config: defaultConfig(),
		timeline: new Timeline(),
		scope,
		signal: new AbortController().signal,
		log: new Log(() => undefined, "error"),
		onVmm: (vmm) => started.push(vmm.pid),
		cgroup,
		disk: undefined,
		scratch: Promise.resolve(undefined),
		initdata: plan.confidential === undefined ? undefined : writeInitdataDisk(folder, plan.confidential.initdata),
		snpPlaces: places,
		network: Promise.resolve(undefined),
	});
	await t.rejects(booted, failing({ reason, message }), String(message));
	await scope.close();
	t.equal(started.length, cgroup === undefined ? 1 : 0);
	t.same(findProcesses(folder, API_SOCKET_OPTION), [], "the program has ended");
	const calls = join(folder, "calls");
	return existsSync(calls) ? readFileSync(calls, "utf8").trim().split("\n") : [];
}

t.test(
	"a program that can't make SEV-SNP guests, a machine that can't, and a VM that is not as asked for: nothing is booted, nothing stays",
	async (t) => {
		const alive = setInterval(() => undefined, 60_000);
		t.teardown(() => clearInterval(alive));
		t.same(await boot(t, { features: ["kvm", "io_uring"] }, "Y\n", /without sev_snp, igvm, fw_cfg/, "confidential.vmm"), ["vmm.ping"]);
		t.same(await boot(t, {}, "N\n", /this node can't start a confidential VM: .*SEV-SNP is off/, "confidential.host"), ["vmm.ping"]);
		for (const forgets of ["platform.sev_snp", "payload.igvm", "payload.host_data", "payload.fw_cfg_config"]) {
			const calls = await boot(t, { forgets }, "Y\n", new RegExp(`does not keep ${forgets}`), "confidential.vmm");
			t.same(calls, ["vmm.ping", "vm.create", "vm.info"], forgets);
		}
		const calls = await boot(t, {}, "Y\n", /this program starts no VM/, "vmm.api");
		t.same(calls, ["vmm.ping", "vm.create", "vm.info", "vm.boot"], "one that keeps all of it is booted");
	},
);

t.test("a VMM that can't be started in its control group is not started at all", async (t) => {
	const alive = setInterval(() => undefined, 60_000);
	t.teardown(() => clearInterval(alive));
	// A folder that is no control group takes no process.
	const folder = t.testdir({ hierarchy: {} });
	const group = new HostCgroup("/pod", [{ mountPoint: join(folder, "hierarchy"), version: 1, controllers: [] }]);
	const calls = await boot(t, {}, "Y\n", /hierarchy\/pod can't be used/, "host.cgroup", group);
	t.strictSame(calls, []);
	t.notOk(existsSync(join(folder, "hierarchy/pod")), "the group is given back");
});
