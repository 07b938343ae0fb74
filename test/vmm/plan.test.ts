/** Planning a VM and reading slots. */

import { readFileSync } from "node:fs";
import { t } from "tap";

import type { VmInfo } from "../../shim/vmm/api-types.ts";
import { diskAddress, planVm, slotOfBdf } from "../../shim/vmm/plan.ts";

const least = { vcpus: 2, memoryMiB: 256, kernelPath: "/k", cmdline: "quiet", disks: [], vsock: { cid: 3, socketPath: "/v" } };

t.test("planVm: what is not asked for is off", async (t) => {
	t.same(planVm(least), {
		payload: { kernel: "/k", cmdline: "quiet" },
		cpus: { boot_vcpus: 2, max_vcpus: 2 },
		memory: { size: 268435456, shared: false },
		rng: { src: "/dev/urandom" },
		vsock: { cid: 3, socket: "/v" },
		serial: { mode: "Null" },
		console: { mode: "Off" },
	});
});

t.test("planVm: everything that can be asked for", async (t) => {
	const config = planVm({
		...least,
		maxVcpus: 4,
		sharedMemory: true,
		initramfsPath: "/i",
		disks: [{ id: "d1", path: "/d", readonly: true, serial: "s", segment: 1 }],
		pciSegments: 2,
		balloon: { deflateOnOom: true },
		serialFile: "/serial",
		landlockRules: [{ path: "/d", access: "r" }],
	});
	t.match(config, {
		payload: { initramfs: "/i" },
		cpus: { boot_vcpus: 2, max_vcpus: 4 },
		memory: { shared: true },
		disks: [{ id: "d1", path: "/d", readonly: true, serial: "s", sparse: false, image_type: "Raw", pci_segment: 1 }],
		platform: { num_pci_segments: 2 },
		balloon: { size: 0, deflate_on_oom: true, free_page_reporting: false },
		serial: { mode: "File", file: "/serial" },
		landlock_enable: true,
		landlock_rules: [{ path: "/d", access: "r" }],
	});
});

t.test("diskAddress: the place of a disk in a recorded device tree", async (t) => {
	const lines = readFileSync(new URL("data/recorded.jsonl", import.meta.url), "utf8")
		.trim()
		.split("\n");
	const infos = lines
		.map((line) => JSON.parse(line) as { endpoint: string; status: number; answer: string })
		.filter(({ endpoint, status }) => endpoint === "vm.info" && status === 200);
	const info = infos.map(({ answer }) => JSON.parse(answer) as VmInfo).find((info) => info.device_tree?.["pin"] !== undefined);
	if (info === undefined) throw new Error("no recording has the disk");
	t.equal(diskAddress(info, "pin"), "0000:00:14.0");
	t.equal(diskAddress(info, "missing"), undefined);
	t.equal(diskAddress(info, "constructor"), undefined);
	t.equal(diskAddress({ config: info.config, state: "Created" }, "pin"), undefined);
});

t.test("slotOfBdf: two digits, or nothing", async (t) => {
	t.equal(slotOfBdf("0000:00:1F.0"), "1f");
	t.equal(slotOfBdf("00:1f.0"), undefined);
	t.equal(slotOfBdf(""), undefined);
});
