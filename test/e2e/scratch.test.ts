/** Disks that the guest encrypts for what containers write, in a real VM: what the host sees of them, and what becomes of what it changes. */

import {
	closeSync,
	copyFileSync,
	mkdirSync,
	openSync,
	readSync,
	statSync,
	symlinkSync,
	truncateSync,
	writeFileSync,
	writeSync,
} from "node:fs";
import { join } from "node:path";
import t from "tap";
import { onScratch, upperStorage } from "../../shim/agent/storages.ts";
import type { StorageRequest } from "../../shim/agent/storages.ts";
import { GuestVm } from "../support/guest-vm.ts";
import { busyboxPath } from "../support/image.ts";
import { runOk } from "../support/process.ts";
import { eventually } from "../support/retry.ts";
import { randomSource } from "../support/random.ts";

const MIB = 1024 * 1024;
const SEED = 20_261_126;
const DISK_MIB = 4 * 1024;
const SMALL_MIB = 256;
const PATTERN = "what a container writes is nobody else's";
const MKFS_MS = 30_000;
const GIVE_BACK_MS = 60_000;
const CHUNK = 1 << 20;
const ZEROS = Buffer.alloc(CHUNK);
/** btrfs keeps copies of its superblock there (its documentation of the on-disk format). */
const SUPERBLOCKS_END = 128 * 1024;

async function rootImage(folder: string): Promise<string> {
	const root = join(folder, "root");
	for (const place of ["bin", "proc", "sys", "dev", "tmp", "data"]) mkdirSync(join(root, place), { recursive: true });
	copyFileSync(busyboxPath(), join(root, "bin/busybox"));
	for (const applet of [
		"sh",
		"cat",
		"dd",
		"df",
		"rm",
		"sync",
		"yes",
		"head",
		"ls",
		"stat",
		"echo",
		"sha256sum",
		"test",
		"sleep",
		"sort",
		"stty",
	])
		symlinkSync("busybox", join(root, "bin", applet));
	const image = join(folder, "root.erofs");
	await runOk(["mkfs.erofs", image, root], { timeoutMs: MKFS_MS });
	return image;
}

function sparse(path: string, mib: number): string {
	writeFileSync(path, "");
	truncateSync(path, mib * MIB);
	return path;
}

/** The parts of a sparse file that hold something, as offsets and bytes. */
function* parts(path: string): Generator<{ at: number; bytes: Buffer }> {
	const file = openSync(path, "r");
	try {
		const { size } = statSync(path);
		for (let at = 0; at < size; at += CHUNK) {
			const bytes = Buffer.alloc(Math.min(CHUNK, size - at));
			readSync(file, bytes, 0, bytes.length, at);
			if (!bytes.equals(ZEROS.subarray(0, bytes.length))) yield { at, bytes };
		}
	} finally {
		closeSync(file);
	}
}

const allocatedMib = (path: string): number => (statSync(path).blocks * 512) / MIB;

t.test("a VM with writable disks", async (t) => {
	const folder = t.testdir();
	const image = await rootImage(folder);
	const large = sparse(join(folder, "large"), DISK_MIB);
	const small = sparse(join(folder, "small"), SMALL_MIB);
	const disks = [
		{ id: "root", path: image, readonly: true },
		{ id: "large", path: large, readonly: false },
		{ id: "small", path: small, readonly: false },
	];
	const vm = await GuestVm.boot(t, disks, "large");
	const root = await vm.slot("root");
	const lower = (mount_point: string): StorageRequest => ({
		driver: "blk",
		source: root,
		fstype: "erofs",
		mount_point,
		options: ["X-kata.overlay-lower", "X-kata.multi-layer=true"],
	});
	const volume: StorageRequest = {
		driver: "blk",
		source: await vm.slot("small"),
		fstype: "ext4",
		mount_point: "/run/kata-containers/sandbox/volumes/small",
		options: ["mode=1777", "uid=7"],
		driver_options: ["encryption_key=ephemeral", "create_filesystem"],
	};
	const data = { "/data": volume.mount_point ?? "" };
	const onDisk = (rootfs: string): StorageRequest[] => [lower(rootfs), upperStorage(rootfs.split("/").at(-2) ?? "")];

	await t.test("the writable layer lies on the pod's disk, as large as the host made it, and takes what is written", async (t) => {
		const { out, status } = await vm.run(
			onDisk,
			"df -m / | { read head; read name size rest; echo $size; }; dd if=/dev/zero of=/zeros bs=1M count=20 2>/dev/null && stat -c %s /zeros",
		);
		t.equal(status, 0);
		const [size, written] = out.split("\n");
		t.ok(Math.abs(Number(size) - DISK_MIB) < 64, `the guest sees ${size} MiB`);
		t.equal(Number(written), 20 * MIB);
		t.ok(allocatedMib(large) < 64, `${allocatedMib(large)} MiB of the node are taken`);
	});

	await t.test("nothing of what a container writes can be found in the host's file", async (t) => {
		const outcome = await vm.run(
			(rootfs) => [...onDisk(rootfs), volume],
			`yes "${PATTERN}" | head -c 8000000 | { cat > /secret; }; cat /secret > /data/secret; sync; sha256sum /secret /data/secret | sort -u`,
			data,
		);
		t.match(outcome, { status: 0 });
		for (const path of [large, small]) {
			t.ok(allocatedMib(path) > 7, `${path} holds it`);
			for (const { at, bytes } of parts(path)) t.notOk(bytes.includes(PATTERN), `the piece at ${at} of ${path}`);
		}
	});

	await t.test("a volume outlives its containers, with the owner and the mode that the host asked for", async (t) => {
		const { out } = await vm.run(
			(rootfs) => [lower(rootfs), volume],
			`stat -c '%u %a' /data; head -c ${PATTERN.length} /data/secret`,
			data,
		);
		t.equal(out, `7 1777\n${PATTERN}`);
	});

	await t.test("a folder of the pod lies on the pod's disk, and stays when its containers go", async (t) => {
		const folderVolume = onScratch({
			driver: "local",
			source: "local",
			fstype: "local",
			mount_point: "/run/kata-containers/sandbox/volumes/folder",
			options: ["uid=9", "mode=777"],
		});
		const places = { "/data": folderVolume.mount_point ?? "" };
		const inFolder = (rootfs: string): StorageRequest[] => [...onDisk(rootfs), folderVolume];
		t.match(await vm.run(inFolder, "echo kept > /data/file; sync", places), { status: 0, err: "" });
		const { out } = await vm.run(
			inFolder,
			"cat /data/file; stat -c '%u %a' /data; df -m /data | { read head; read name size rest; echo $size; }",
			places,
		);
		t.match(out, new RegExp(`^kept\\n9 777\\n${DISK_MIB}\\n$`));
	});

	await t.test("a disk that is full is an error for its container alone", async (t) => {
		const script =
			"dd if=/dev/zero of=/data/much bs=1M count=500 2>&1; df -m /data | { read head; read name size used free rest; echo $free; }; rm /data/much; echo new > /data/new && cat /data/new";
		const { out, status } = await vm.run((rootfs) => [lower(rootfs), volume], script, data);
		t.equal(status, 0);
		t.match(out, /No space left on device/);
		t.ok(out.endsWith("\nnew\n"), out);
		t.ok(allocatedMib(small) <= SMALL_MIB);
	});

	await t.test("what is deleted in the guest is given back to the node", async (t) => {
		const before = allocatedMib(large);
		const { id, rootfs } = vm.newContainer();
		await vm.create(
			id,
			onDisk(rootfs),
			"dd if=/dev/urandom of=/much bs=1M count=48 2>/dev/null; sync; echo written; read go; rm /much; sync; exec sleep 1000",
		);
		await vm.agent.startContainer(id);
		const said = await vm.agent.readOutput({ containerId: id, execId: "" }, "stdout", 100);
		t.equal(Buffer.from(said).toString(), "written\n");
		t.ok(allocatedMib(large) > before + 40, `${allocatedMib(large)} MiB after ${before} MiB`);
		await vm.agent.writeStdin({ containerId: id, execId: "" }, Buffer.from("go\n"));
		await eventually("the space of the deleted file", GIVE_BACK_MS, () => (allocatedMib(large) < before + 24 ? true : undefined));
		await vm.agent.removeContainer(id);
	});

	await t.test("a byte that the host changed is a read error, as is an older state that it put back", async (t) => {
		const bytes = 4 * MIB;
		const write = (name: string): string => `dd if=/dev/urandom of=/data/${name} bs=1M count=4 2>/dev/null; sync`;
		t.match(await vm.run((rootfs) => [lower(rootfs), volume], "rm -f /data/*; sync; " + write("a"), data), { status: 0 });
		const earlier = new Map([...parts(small)].map(({ at, bytes: content }) => [at, content]));
		t.match(await vm.run((rootfs) => [lower(rootfs), volume], write("b"), data), { status: 0 });
		const changed = [...parts(small)].filter(
			({ at, bytes: content }) => at >= SUPERBLOCKS_END && !(earlier.get(at)?.equals(content) ?? false),
		);
		t.ok(changed.length * CHUNK >= bytes, "the file is on the disk");
		const random = randomSource(SEED);
		const read = async () =>
			await vm.run((rootfs) => [lower(rootfs), volume], "echo 3 > /proc/sys/vm/drop_caches; cat /data/b > /dev/null", data);
		const put = (state: (part: { at: number; bytes: Buffer }) => Buffer): void => {
			const file = openSync(small, "r+");
			for (const part of changed) writeSync(file, state(part), 0, part.bytes.length, part.at);
			closeSync(file);
		};
		const states = {
			"one byte of each piece is another": ({ bytes: content }: { bytes: Buffer }) => {
				const other = Buffer.from(content);
				const position = random(other.length);
				other[position] = (other[position] ?? 0) ^ 1;
				return other;
			},
			"each piece is as it was before": ({ at, bytes: content }: { at: number; bytes: Buffer }) =>
				earlier.get(at) ?? Buffer.alloc(content.length),
		};
		for (const [what, state] of Object.entries(states)) {
			put(state);
			const { status, err } = await read();
			t.not(status, 0, what);
			t.match(err, /I\/O error|Input\/output error/, what);
		}
		put(({ bytes: content }) => content);
		t.match(await read(), { status: 0, err: "" }, "what was written is there again");
	});
});
