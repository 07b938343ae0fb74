/** SEV-SNP VMs as they are asked for, and as VMMs keep them or not. */

import { readFileSync } from "node:fs";
import t from "tap";

import type { VmInfo, VmmPingResponse } from "../../shim/vmm/api-types.ts";
import type { VmConfig } from "../../shim/vmm/config-types.ts";
import { planVm } from "../../shim/vmm/plan.ts";
import { checkReadBack, checkSnpFeatures } from "../../shim/vmm/snp.ts";

const HOST_DATA = "5a".repeat(32);
const least = {
	vcpus: 2,
	memoryMiB: 256,
	kernelPath: "/k",
	initramfsPath: "/i",
	cmdline: "quiet",
	disks: [{ id: "initdata", path: "/f", readonly: true, serial: "initdata" }],
	vsock: { cid: 3, socketPath: "/v" },
	pciSegments: 2,
};
const asked = planVm({ ...least, snp: { igvmPath: "/g.igvm", hostData: HOST_DATA } });
/** One request of a recording. */
interface Step {
	readonly path: string;
	readonly status: string | number;
	readonly body?: unknown;
	readonly response?: unknown;
}
const infoOf = (config: VmConfig): VmInfo => ({ config, state: "Created" });

t.test(
	"planVm: SNP is asked for with the IGVM file, HOST_DATA, and kernel, initramfs and command line among what is measured",
	async (t) => {
		t.same(asked.platform, { num_pci_segments: 2, sev_snp: true });
		t.same(asked.payload, {
			igvm: "/g.igvm",
			host_data: HOST_DATA,
			kernel: "/k",
			initramfs: "/i",
			cmdline: "quiet",
			fw_cfg_config: { e820: true, kernel: true, cmdline: true, initramfs: true, acpi_tables: true },
		});
		t.match(asked, {
			memory: { shared: false },
			cpus: { boot_vcpus: 2, max_vcpus: 2 },
			serial: { mode: "Null" },
			console: { mode: "Off" },
		});
		t.notOk("balloon" in asked || "fs" in asked || "hotplug_size" in (asked.memory ?? {}));
		for (const hostData of ["", "5a", "5A".repeat(32), "zz".repeat(32), "5a".repeat(33)])
			t.throws(() => planVm({ ...least, snp: { igvmPath: "/g", hostData } }), /64 hexadecimal digits/, JSON.stringify(hostData));
		t.notOk("platform" in planVm({ ...least, pciSegments: 1 }));
	},
);

t.test("a VMM whose features lack one that SNP needs is refused by name, before it could start an ordinary VM", async (t) => {
	const ping = (features?: readonly string[]): VmmPingResponse => ({ version: "v53.0.0", ...(features === undefined ? {} : { features }) });
	checkSnpFeatures("/ch", ping(["fw_cfg", "igvm", "io_uring", "kvm", "sev_snp"]));
	for (const [features, missing] of [
		[["kvm"], "sev_snp, igvm, fw_cfg"],
		[["kvm", "igvm", "fw_cfg"], "sev_snp"],
		[["sev_snp", "fw_cfg"], "igvm"],
		[["sev_snp", "igvm"], "fw_cfg"],
		[undefined, "sev_snp, igvm, fw_cfg"],
	] as const)
		t.throws(() => checkSnpFeatures("/ch", ping(features)), {
			reason: "confidential.vmm",
			message: new RegExp(`/ch .*v53.*without ${missing}: `),
		});
});

t.test("the recorded program has the features, and keeps every part of an SNP VM that it was asked for", async (t) => {
	const linesOf = (path: string): unknown[] =>
		readFileSync(new URL(path, import.meta.url), "utf8")
			.trim()
			.split("\n")
			.map((line) => JSON.parse(line) as unknown);
	const answers = linesOf("data/recorded.jsonl") as { endpoint: string; answer: string }[];
	const ping = answers.find(({ endpoint }) => endpoint === "vmm.ping")?.answer ?? "{}";
	checkSnpFeatures("/ch", JSON.parse(ping) as VmmPingResponse);
	const scenarios = linesOf("../ch-qemu/data/recorded.jsonl") as { scenario: string; steps: Step[] }[];
	let compared = 0;
	for (const { steps } of scenarios.filter(({ scenario }) => scenario === "sev_snp")) {
		const created = steps.find(({ path, status }) => path.endsWith("vm.create") && Number(status) === 204)?.body as VmConfig | undefined;
		const info = steps.find(({ path, status }) => path.endsWith("vm.info") && Number(status) === 200)?.response as VmInfo | undefined;
		if (created === undefined || info === undefined) continue;
		checkReadBack(created, info);
		t.throws(() => checkReadBack({ ...created, payload: { ...created.payload, host_data: HOST_DATA } }, info), {
			message: /payload\.host_data/,
		});
		compared += 1;
	}
	t.ok(compared > 3, `${compared} VMs were compared`);
});

t.test("checkReadBack: whatever of the guarded parts a VMM does not keep is named", async (t) => {
	checkReadBack(asked, infoOf(structuredClone(asked)));
	const upper = structuredClone(asked);
	upper.payload.host_data = HOST_DATA.toUpperCase();
	checkReadBack(asked, infoOf({ ...upper, devices: [], iommu: false }));
	const cases: readonly (readonly [string, (config: VmConfig) => void])[] = [
		["platform.sev_snp", (config) => delete config.platform],
		["platform.sev_snp", (config) => Object.assign(config, { platform: { num_pci_segments: 2, sev_snp: false } })],
		["payload.igvm", (config) => delete config.payload.igvm],
		["payload.igvm", (config) => Object.assign(config.payload, { igvm: "/other" })],
		["payload.host_data", (config) => delete config.payload.host_data],
		["payload.host_data", (config) => Object.assign(config.payload, { host_data: "00".repeat(32) })],
		["payload.kernel", (config) => Object.assign(config.payload, { kernel: "/other" })],
		["payload.initramfs", (config) => delete config.payload.initramfs],
		["payload.cmdline", (config) => Object.assign(config.payload, { cmdline: "quiet init=/bin/sh" })],
		["payload.firmware", (config) => Object.assign(config.payload, { firmware: "/fw" })],
		["payload.fw_cfg_config.kernel", (config) => delete config.payload.fw_cfg_config],
		[
			"payload.fw_cfg_config.initramfs",
			(config) => Object.assign(config.payload, { fw_cfg_config: { kernel: true, cmdline: true, initramfs: false } }),
		],
		["cpus.max_vcpus", (config) => Object.assign(config, { cpus: { boot_vcpus: 2, max_vcpus: 8 } })],
		["memory.shared", (config) => Object.assign(config.memory ?? {}, { shared: true })],
		["memory.hotplug_size", (config) => Object.assign(config.memory ?? {}, { hotplug_size: 1 })],
		["serial.mode", (config) => Object.assign(config, { serial: { mode: "File", file: "/log" } })],
		["console.mode", (config) => Object.assign(config, { console: { mode: "Tty" } })],
		["balloon", (config) => Object.assign(config, { balloon: { size: 0 } })],
		["fs", (config) => Object.assign(config, { fs: [{ tag: "t", socket: "/s", num_queues: 1, queue_size: 1 }] })],
	];
	for (const [name, change] of cases) {
		const kept = structuredClone(asked);
		change(kept);
		t.throws(
			() => checkReadBack(asked, infoOf(kept)),
			{ reason: "confidential.vmm", message: new RegExp(`does not keep ${name}: `) },
			name,
		);
	}
});
