/** Layers that prove themselves, in a real VM: whatever byte the host changes, the guest notices, and names the layer. */

import { copyFileSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import type { StorageRequest } from "../../shim/agent/storages.ts";
import { messageOf } from "../../shim/base/errors.ts";
import { flip } from "../support/damage.ts";
import { GuestVm } from "../support/guest-vm.ts";
import { busyboxPath } from "../support/image.ts";
import { buildLayerDisk, layerStorages } from "../support/layer-disk.ts";
import type { LayerDisk } from "../support/layer-disk.ts";
import { eventually } from "../support/retry.ts";
import { randomBytes, randomSource } from "../support/random.ts";

const SECTOR = 512;
const FLIPPED = 0x40;
const BLOCK = 4096;
/** Bytes of a table that its checksums cover: header and entries. */
const TABLE_SECTORS = 33;
const SEED = 20_261_125;
const LOG_MS = 10_000;
const READ_ALL = "find /bin /data /old /top -type f | xargs cat > /dev/null && cat /top/hello";

/** Three layers: a program below, data in the middle, and on top a file, a whiteout and an opaque folder. */
async function build(folder: string): Promise<LayerDisk> {
	const roots = ["top", "middle", "bottom"].map((name) => join(folder, name));
	const [top = "", middle = "", bottom = ""] = roots;
	for (const place of ["bin", "proc", "sys", "dev", "tmp", "old"]) mkdirSync(join(bottom, place), { recursive: true });
	copyFileSync(busyboxPath(), join(bottom, "bin/busybox"));
	for (const applet of ["sh", "cat", "find", "sort", "xargs", "ls", "echo", "test"]) symlinkSync("busybox", join(bottom, "bin", applet));
	writeFileSync(join(bottom, "old/secret"), "below");
	mkdirSync(join(middle, "data"), { recursive: true });
	const random = randomSource(SEED);
	writeFileSync(join(middle, "data/noise"), randomBytes(random, 1_200_000));
	mkdirSync(join(top, "top"), { recursive: true });
	writeFileSync(join(top, "top/hello"), "hello\n");
	writeFileSync(join(top, "top/noise"), randomBytes(random, 300_000));
	return await buildLayerDisk(folder, roots);
}

t.test("a VM with a disk of three layers", async (t) => {
	const folder = t.testdir();
	const disk = await build(folder);
	const vm = await GuestVm.boot(t, [{ id: "layers", path: disk.path, readonly: true }]);
	const slot = await vm.slot("layers");
	const storages = (rootfs: string): StorageRequest[] => layerStorages(disk, slot, rootfs);
	const random = randomSource(SEED);

	await t.test("the layers are stacked, and what the container writes stays above them", async (t) => {
		const outcome = await vm.run(storages, `${READ_ALL} && echo new > /data/noise && cat /data/noise && cat /proc/mounts`);
		t.match(outcome, { status: 0, err: "" });
		t.match(outcome.out, /^hello\nnew\n.* \/ overlay /);
	});

	await t.test("two containers of one image stand on the same layers, and either may go first", async (t) => {
		const [first, second] = [vm.newContainer(), vm.newContainer()];
		await vm.create(first.id, storages(first.rootfs), READ_ALL);
		await vm.create(second.id, storages(second.rootfs), READ_ALL);
		t.match(await vm.finish(first.id), { status: 0, out: "hello\n" });
		await vm.agent.removeContainer(first.id);
		t.match(await vm.finish(second.id), { status: 0, out: "hello\n" });
		await vm.agent.removeContainer(second.id);
	});

	await t.test("the host is told which layer a read failed in", async (t) => {
		const middle = disk.layers[1];
		if (middle === undefined) throw new Error("there are three layers");
		const at = middle.start + Math.floor(middle.dataBytes / 2);
		flip(disk.path, at, FLIPPED);
		const outcome = await vm.run(storages, READ_ALL);
		flip(disk.path, at, FLIPPED);
		t.not(outcome.status, 0);
		t.match(await vm.agent.nextDamage(), new RegExp(`layer 2 of .*${middle.rootHash}.* block [0-9]+ of its data does not verify`));
	});

	await t.test("a byte that was changed in a layer's data or tree is never read, and the layer is named", async (t) => {
		for (const layer of disk.layers) {
			// A hash block counts to its last byte, also where its hashes have ended and only padding is left.
			const inTree = Array.from({ length: layer.treeBytes / BLOCK }, (_, block) => layer.start + layer.dataBytes + block * BLOCK).flatMap(
				(block) => [block + random(BLOCK), block + BLOCK - 1],
			);
			const inData = Array.from({ length: 4 }, () => layer.start + random(layer.dataBytes));
			for (const at of [...inTree, ...inData]) {
				flip(disk.path, at, FLIPPED);
				const told = await attempt(vm, storages);
				flip(disk.path, at, FLIPPED);
				t.match(told, layer.rootHash, `byte ${at - layer.start} of layer ${layer.number} (${layer.dataBytes} bytes and their tree)`);
				t.match(told, `layer ${layer.number} of `);
			}
		}
		t.match(await vm.run(storages, READ_ALL), { status: 0, out: "hello\n" });
	});

	await t.test("a byte that was changed in the partition table or its backup is noticed before anything is mounted", async (t) => {
		for (const first of [SECTOR, disk.bytes - TABLE_SECTORS * SECTOR]) {
			for (const at of Array.from({ length: 6 }, () => first + random(TABLE_SECTORS * SECTOR))) {
				flip(disk.path, at, FLIPPED);
				const { id, rootfs } = vm.newContainer();
				await t.rejects(vm.create(id, storages(rootfs), READ_ALL), { message: /partition table/ }, `byte ${at}`);
				flip(disk.path, at, FLIPPED);
			}
		}
	});

	await t.test("a root hash, a size or a partition that is not the disk's is refused, and the layer is named", async (t) => {
		const changed = (from: RegExp, to: string) => (rootfs: string) =>
			storages(rootfs).map((storage) => ({ ...storage, options: (storage.options ?? []).map((option) => option.replace(from, to)) }));
		const [first] = disk.layers;
		const cases = [
			{
				wrong: changed(new RegExp(`${first?.rootHash}$`), "0".repeat(64)),
				message: new RegExp(`layer 1 of .*${"0".repeat(64)}.* does not verify`),
			},
			{ wrong: changed(new RegExp(`hashoffset=${first?.dataBytes}$`), "hashoffset=4096"), message: /layer 1 of 3/ },
			{ wrong: changed(/hashoffset=[0-9]+$/, "hashoffset=40960000"), message: /layer 1 of 3: .*have no room for/ },
			{ wrong: changed(/partition-number=3$/, "partition-number=4"), message: /layer 3 of 3: there is no partition 4/ },
			{ wrong: changed(/salt=00/, "salt=01"), message: /layer 1 of .* does not verify/ },
			{ wrong: changed(/hashtype=1/, "ignore-corruption=true"), message: /ignore-corruption=true is not supported/ },
		];
		for (const { wrong, message } of cases) {
			const { id, rootfs } = vm.newContainer();
			await t.rejects(vm.create(id, wrong(rootfs), READ_ALL), { message });
		}
		t.match(await vm.run(storages, READ_ALL), { status: 0, out: "hello\n" });
	});

	await t.test("nothing of the layers is left when their containers are gone", async (t) => {
		const { out } = await vm.run(storages, "ls /sys/block");
		// Those of this container alone.
		t.equal(out.split("\n").filter((name) => name.startsWith("dm-")).length, disk.layers.length);
	});
});

/** What is said when a container that reads everything is made and run: the failed call, or the agent's log after the failed read. */
async function attempt(vm: GuestVm, storages: (rootfs: string) => StorageRequest[]): Promise<string> {
	const { id, rootfs } = vm.newContainer();
	const logged = vm.log.length;
	try {
		await vm.create(id, storages(rootfs), READ_ALL);
	} catch (error) {
		return messageOf(error);
	}
	try {
		const { status, err } = await vm.finish(id);
		if (status === 0) return `everything could be read: ${vm.log.slice(logged)}`;
		return await eventually("the agent's word about the layer", LOG_MS, () => /.* does not verify/.exec(vm.log.slice(logged))?.[0]).catch(
			() => `only the container says so: ${err}`,
		);
	} catch (error) {
		return messageOf(error);
	} finally {
		await vm.agent.removeContainer(id);
	}
}
