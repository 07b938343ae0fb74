/** emptyDirs with disks: in the journal before they are made, made once for the pod, and gone with its VM. */
import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { Log } from "../../shim/base/log.ts";
import { defaultConfig } from "../../shim/config/schema.ts";
import { fileKey } from "../../shim/host/disks.ts";
import { DeviceRemovals } from "../../shim/pod/device-removals.ts";
import { EmptyDirs } from "../../shim/pod/empty-dirs.ts";
import type { EmptyDirRecord } from "../../shim/pod/empty-dirs.ts";
import type { Machine } from "../../shim/pod/machine.ts";
import { POD, VolumeDisks } from "../../shim/pod/volume-disks.ts";
import type { DiskRecord } from "../../shim/pod/volume-disks.ts";
import { VmmClient } from "../../shim/vmm/client.ts";
import { failing } from "../base/failing.ts";
import { answer, serveApi } from "../vmm/api-server.ts";

const OWNER = "1".repeat(32);
const MIB = 1024 * 1024;
const FULL = answer(500, JSON.stringify(["Error from API", "Failed to find an available PCI device ID"]));
const BROKEN = answer(500, JSON.stringify(["Error from API", "broken"]));

/** A pod with one emptyDir, and a VMM whose answers the test gives. */
async function setUp(t: Test, options: { readonly add?: (call: string) => string; readonly landlock?: boolean } = {}) {
	const dir = mkdtempSync(join(tmpdir(), "snp-"));
	const path = join(dir, "work");
	mkdirSync(path);
	const calls: string[] = [];
	/** The journal, and what was in the folder, when it was written. */
	const journal: { readonly records: readonly EmptyDirRecord[]; readonly files: number }[] = [];
	const server = await serveApi(join(dir, "api.sock"), ({ path: call }) => {
		calls.push(call);
		return options.add?.(call) ?? answer(200, '{"id":"vol","bdf":"0000:00:05.0"}');
	});
	t.teardown(async () => {
		await server.close();
		rmSync(dir, { recursive: true });
	});
	let next = 1;
	const config = defaultConfig();
	const host = {
		config: { ...config, hypervisor: { ...config.hypervisor, landlock: options.landlock ?? false } },
		log: new Log(() => undefined),
		owner: OWNER,
		pciSegments: 1,
		nextNumber: () => next++,
		save: () => void journal.push({ records: emptyDirs.record(), files: readdirSync(path).length }),
	};
	const disks = new VolumeDisks(host);
	const emptyDirs: EmptyDirs = new EmptyDirs(host, disks);
	const machine = {
		vmm: { client: new VmmClient(server.path) },
		details: { pci: true },
		removals: new DeviceRemovals(),
	} as unknown as Machine;
	const use = (limitBytes?: number) => emptyDirs.use(path, limitBytes, machine, new AbortController().signal);
	/** As a new snpd finds them. */
	const restored = (
		old: { readonly disks: readonly DiskRecord[]; readonly emptyDirs: readonly EmptyDirRecord[] } = {
			disks: disks.record(),
			emptyDirs: emptyDirs.record(),
		},
	): { emptyDirs: EmptyDirs; disks: VolumeDisks } => {
		const again = new VolumeDisks(host, old.disks);
		return { disks: again, emptyDirs: new EmptyDirs(host, again, old.emptyDirs) };
	};
	return { emptyDirs, disks, machine, path, calls, journal, use, restored };
}

t.test("a disk is made once for all containers, in the journal before its file is there, and stays when they go", async (t) => {
	const { emptyDirs, disks, machine, path, calls, journal, use, restored } = await setUp(t);
	t.equal(await use(64 * MIB), "05");
	t.match(journal[0], { records: [{ path, file: join(path, `containerd-shim-snp-${OWNER}.img`) }], files: 0 });
	t.equal(await use(), "05");
	t.same(calls, ["/api/v1/vm.add-disk"]);
	t.same(disks.writers(), [], "nothing of it has to be written out");
	await disks.release("c", machine);
	await disks.resume(new Set(), machine);
	t.same(calls.length, 1, "it is not pulled");
	const later = restored();
	t.equal(await later.emptyDirs.use(path, undefined, machine, new AbortController().signal), "05", "also for a later snpd");
	await emptyDirs.end();
	t.same(readdirSync(path), []);
});

t.test("without a place for a disk, and under Landlock, the volume is on the pod's own disk, for all its containers", async (t) => {
	for (const options of [{ add: () => FULL }, { landlock: true }]) {
		const { emptyDirs, path, calls, use } = await setUp(t, options);
		t.equal(await use(), undefined);
		const asked = calls.length;
		t.equal(await use(), undefined);
		t.equal(calls.length, asked, "the VMM is not asked again");
		t.same(emptyDirs.record(), [{ path, file: "" }]);
		t.same(readdirSync(path), []);
	}
});

t.test("a disk that could not be plugged in leaves nothing, and is tried anew", async (t) => {
	let broken = true;
	const { emptyDirs, path, use } = await setUp(t, { add: () => (broken ? BROKEN : answer(200, '{"id":"vol","bdf":"0000:00:06.0"}')) });
	await t.rejects(use(), failing({ reason: "vmm.api" }));
	t.same([emptyDirs.record(), readdirSync(path)], [[], []]);
	broken = false;
	t.equal(await use(), "06");
});

t.test("what an snpd left that was killed before the disk was plugged in is made anew by the next one", async (t) => {
	const gone = answer(500, JSON.stringify(["Error from API", "No device with id vol1 to remove"]));
	const added = answer(200, '{"id":"vol","bdf":"0000:00:07.0"}');
	const { machine, path, calls, restored } = await setUp(t, { add: (call) => (call.endsWith("remove-device") ? gone : added) });
	const file = join(path, `containerd-shim-snp-${OWNER}.img`);
	writeFileSync(file, "half");
	const record = { id: "vol1", key: fileKey(file), readonly: false, source: "", users: [POD] };
	const later = restored({ disks: [record], emptyDirs: [{ path, file }] });
	await later.disks.resume(new Set(), machine);
	t.same(later.disks.record(), []);
	t.equal(await later.emptyDirs.use(path, 64 * MIB, machine, new AbortController().signal), "07");
	t.same(calls, ["/api/v1/vm.remove-device", "/api/v1/vm.add-disk"]);
	t.ok(statSync(file).size > 64 * MIB);
	await later.emptyDirs.end();
	t.same(readdirSync(path), []);
});
