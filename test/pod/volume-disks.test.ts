/** Disks of a pod's volumes: one for each, from its first user to its last, and in the journal before all that. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { Log } from "../../shim/base/log.ts";
import { defaultConfig } from "../../shim/config/schema.ts";
import { diskAt } from "../../shim/host/disks.ts";
import { DeviceRemovals } from "../../shim/pod/device-removals.ts";
import type { Machine } from "../../shim/pod/machine.ts";
import { POD, VolumeDisks } from "../../shim/pod/volume-disks.ts";
import type { DiskRecord } from "../../shim/pod/volume-disks.ts";
import { VmmClient } from "../../shim/vmm/client.ts";
import { failing } from "../base/failing.ts";
import { answer, serveApi } from "../vmm/api-server.ts";

const NO_SLOT = ["Error from API", "Error from device manager", "Failed to find an available PCI device ID"];
const LOCKED = ["Error from API", "Cannot lock images of all block devices", "The file is already locked"];

/** A VMM whose answers the test gives, and the disks of one pod in it. */
async function setUp(
	t: Test,
	options: { readonly add?: (segment: number) => string; readonly records?: readonly DiskRecord[]; readonly segments?: number } = {},
) {
	const dir = mkdtempSync(join(tmpdir(), "snp-"));
	const calls: string[] = [];
	/** The journal as it was when each call came. */
	const journal: (readonly DiskRecord[])[] = [];
	let saved: readonly DiskRecord[] = [];
	const removals = new DeviceRemovals();
	const server = await serveApi(join(dir, "api.sock"), ({ path, body }) => {
		const { id, pci_segment = 0 } = JSON.parse(body) as { id: string; pci_segment?: number };
		calls.push(`${path.replace("/api/v1/vm.", "")} ${id} ${pci_segment}`);
		journal.push(saved);
		if (path.endsWith("add-disk")) return options.add?.(pci_segment) ?? answer(200, `{"id":"${id}","bdf":"000${pci_segment}:00:05.0"}`);
		setImmediate(() => removals.accept({ timestampMs: 0, source: "vm", event: "device-removed", properties: { id } }));
		return answer(204);
	});
	t.teardown(async () => {
		await server.close();
		rmSync(dir, { recursive: true, force: true });
	});
	const client = new VmmClient(server.path);
	let next = 1;
	const host = {
		config: defaultConfig(),
		log: new Log(() => undefined),
		pciSegments: options.segments ?? 2,
		nextNumber: () => next++,
		save: () => {
			saved = disks.record();
		},
	};
	const disks: VolumeDisks = new VolumeDisks(host, options.records);
	const machine = { vmm: { client }, details: { pci: true }, removals } as unknown as Machine;
	writeFileSync(join(dir, "image"), "");
	const disk = await diskAt(join(dir, "image"));
	if (disk === undefined) throw new Error("no disk");
	return { disks, machine, disk, calls, journal, signal: new AbortController().signal };
}

t.test("a disk comes with its first user and goes with its last; the journal knows it before and after", async (t) => {
	const { disks, machine, disk, calls, journal, signal } = await setUp(t);
	t.equal(await disks.use(disk, "a", machine, signal), "0001:00:05.0");
	t.match(journal[0], [{ id: "vol1", key: disk.key, source: "", users: ["a"] }], "before the VMM was asked");
	t.equal(await disks.use(disk, "b", machine, signal), "0001:00:05.0");
	t.same(disks.writers(), ["a", "b"]);
	await disks.release("a", machine);
	t.same(calls, ["add-disk vol1 1"]);
	await disks.release("b", machine);
	t.same(calls, ["add-disk vol1 1", "remove-device vol1 0"]);
	t.match(journal[1], [{ id: "vol1" }], "still there when the VMM was asked");
	t.same(disks.record(), []);
	t.equal(await disks.use(disk, "c", machine, signal), "0001:00:05.0");
	t.equal(calls.at(-1), "add-disk vol2 1", "under a name that was never used");
});

t.test("a full PCI segment is passed over; when all are, the error says so and nothing is kept", async (t) => {
	const full = answer(500, JSON.stringify(NO_SLOT));
	const some = await setUp(t, { add: (segment) => (segment === 1 ? full : answer(200, '{"id":"vol1","bdf":"0000:00:1f.0"}')) });
	t.equal(await some.disks.use(some.disk, "a", some.machine, some.signal), "1f");
	const none = await setUp(t, { add: () => full });
	await t.rejects(none.disks.use(none.disk, "a", none.machine, none.signal), failing({ reason: "pod.slots-full", message: /image/ }));
	t.same(none.disks.record(), []);
});

t.test("the pod's own disks leave slots to those that can't do without", async (t) => {
	const full = answer(500, JSON.stringify(NO_SLOT));
	const { disks, machine, disk, calls, signal } = await setUp(t, { add: (segment) => (segment === 0 ? answer(200, "{}") : full) });
	await t.rejects(disks.use(disk, POD, machine, signal), failing({ reason: "pod.slots-full" }));
	t.same(calls, ["add-disk vol1 1", "remove-device vol1 0"], "nothing is asked of the first segment");
	const alone = await setUp(t, { segments: 1 });
	const others = Array.from({ length: 8 }, (_, number) => ({ ...alone.disk, key: `file ${number}` }));
	for (const other of others) t.equal(await alone.disks.use(other, POD, alone.machine, alone.signal), "05");
	await t.rejects(alone.disks.use(alone.disk, POD, alone.machine, alone.signal), failing({ reason: "pod.slots-full" }));
	t.equal(await alone.disks.use(alone.disk, "a", alone.machine, alone.signal), "05", "a container's own comes in");
});

t.test("a disk that another VM has is refused by name", async (t) => {
	const { disks, machine, disk, signal } = await setUp(t, { add: () => answer(500, JSON.stringify(LOCKED)) });
	await t.rejects(disks.use(disk, "a", machine, signal), failing({ reason: "volume.busy", message: /image is in use by another VM/ }));
	t.same(disks.record(), []);
});

t.test("a disk that is in the pod to be read is not written by another container", async (t) => {
	const { disks, machine, disk, signal } = await setUp(t);
	await disks.use({ ...disk, readonly: true }, "a", machine, signal);
	await t.rejects(disks.use(disk, "b", machine, signal), failing({ reason: "spec.unsupported", message: /read-only/ }));
	t.same(disks.writers(), []);
});

t.test("after a restart, disks of containers that are no more go, and those that may be half plugged in", async (t) => {
	const record = (id: string, source: string, users: readonly string[]): DiskRecord => ({
		id,
		key: `k ${id}`,
		readonly: false,
		source,
		users,
	});
	const records = [record("vol1", "05", ["a", "gone"]), record("vol2", "06", ["gone"]), record("vol3", "", ["a"])];
	const { disks, machine, calls } = await setUp(t, { records });
	await disks.resume(new Set(["a"]), machine);
	t.same(calls, ["remove-device vol2 0", "remove-device vol3 0"]);
	t.match(disks.record(), [{ id: "vol1", users: ["a"] }]);
	await disks.release("a", undefined);
	t.same(disks.record(), [], "without a VM there is nothing to pull");
});
