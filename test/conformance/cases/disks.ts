/** Volumes that are disks: block devices, file systems that a CSI driver leaves to the VM; and huge pages. */
import assert from "node:assert/strict";
import { closeSync, openSync, readSync, rmSync } from "node:fs";
import { join } from "node:path";
import { isDaemon } from "../../support/leftovers.ts";
import { runOk } from "../../support/process.ts";
import { eventually } from "../../support/retry.ts";
import { withVolumes, type ConformanceCase, type TestContainer } from "../context.ts";

const WAIT_MS = 30_000;
const MIB = 1024 * 1024;
const GROUP = 2000;

const device = (host_path: string, permissions = "rwm") => [{ container_path: "/dev/xvda", host_path, permissions }];

/** The text at the beginning of a disk. */
function head(path: string, length: number): string {
	const fd = openSync(path, "r");
	try {
		const bytes = Buffer.alloc(length);
		readSync(fd, bytes, 0, length, 0);
		return bytes.toString();
	} finally {
		closeSync(fd);
	}
}

/** Writes a text to the beginning of the disk, without asking for it to be brought there. */
const write = (container: TestContainer, text: string, path = "/dev/xvda"): Promise<string> =>
	container.output(`printf ${text} | dd of=${path} conv=notrunc 2>/dev/null`);

async function end(container: TestContainer): Promise<void> {
	await container.stop(0);
	await container.remove();
}

const BLOCK: readonly ConformanceCase[] = [
	{
		id: "block-device",
		name: "a block device is shared by containers under their own paths, and the node has what they wrote when they are gone",
		check: withVolumes(async (pod, volumes) => {
			const disk = await volumes.blockDevice("disk", 9);
			const one = await pod.sleeper({ devices: device(disk) });
			assert.equal(await one.output("blockdev --getsize64 /dev/xvda"), String(9 * MIB));
			await write(one, "first");
			const other = await pod.sleeper({ devices: [{ container_path: "/dev/other", host_path: disk, permissions: "rw" }] });
			assert.equal(await other.output("head -c 5 /dev/other"), "first");
			await end(one);
			await write(other, "other", "/dev/other");
			await end(other);
			assert.equal(head(disk, 5), "other");
		}),
	},
	{
		id: "block-readonly",
		name: "a block device that is given to be read is not written",
		check: withVolumes(async (pod, volumes) => {
			const container = await pod.sleeper({ devices: device(await volumes.blockDevice("disk", 1), "r") });
			assert.equal(await container.output("head -c 4 /dev/xvda | wc -c"), "4");
			assert.notEqual((await container.sh("echo x > /dev/xvda")).exitCode, 0);
		}),
	},
	{
		id: "block-others",
		name: "a container opens no block device of another one",
		check: withVolumes(async (pod, volumes) => {
			const owner = await pod.sleeper({ devices: device(await volumes.blockDevice("disk", 1)) });
			const numbers = await owner.output("stat -c '0x%t 0x%T' /dev/xvda");
			const other = await pod.sleeper();
			assert.notEqual((await other.sh(`mknod /tmp/d b $(printf '%d %d' ${numbers}) && head -c 1 /tmp/d`)).exitCode, 0);
		}),
	},
	{
		id: "block-restarts",
		name: "a block device goes from one container to the next, again and again, also over the death of our daemon",
		check: withVolumes(async (pod, volumes, context) => {
			const disk = await volumes.blockDevice("disk", 1);
			for (const text of ["one", "two", "six"]) {
				const container = await pod.sleeper({ devices: device(disk) });
				await write(container, text);
				for (const daemon of context.bed.containerd.processes().filter(isDaemon)) process.kill(daemon.pid, "SIGKILL");
				await end(container);
				assert.equal(head(disk, 3), text);
			}
		}),
	},
	{
		id: "block-two-pods",
		name: "a block device that one VM has is refused to another by name, and is free when that VM is killed",
		check: withVolumes(async (pod, volumes, context) => {
			const disk = await volumes.blockDevice("disk", 1);
			const owner = await pod.sleeper({ devices: device(disk) });
			await owner.output("dd if=/dev/zero of=/dev/xvda bs=512 count=1 conv=fsync 2>/dev/null");
			const second = await context.pod();
			const attempt = second.output("head -c 1 /dev/xvda | wc -c", { devices: device(disk) });
			if (!context.isVm) {
				assert.equal(await attempt, "1");
				return;
			}
			await assert.rejects(attempt, new RegExp(`${disk} is in use by another VM`));
			pod.killVm();
			await eventually("the end of the first container", WAIT_MS, async () =>
				(await owner.status()).state === "CONTAINER_EXITED" ? true : undefined,
			);
			assert.equal(await second.output("head -c 1 /dev/xvda | wc -c", { devices: device(disk) }), "1");
		}),
	},
	{
		id: "block-mounted",
		name: "a block device that is mounted on the node is refused to a VM by name",
		check: withVolumes(async (pod, volumes, context) => {
			const disk = await volumes.blockDevice("disk", 9);
			await runOk(["mkfs.ext4", "-q", disk]);
			await volumes.mountDevice("place", disk);
			const attempt = pod.output("head -c 1 /dev/xvda | wc -c", { devices: device(disk) });
			if (context.isVm) await assert.rejects(attempt, new RegExp(`${disk} is mounted`));
			else assert.equal(await attempt, "1");
		}),
	},
	{
		id: "devices-guest",
		name: "devices that every kernel has the same way work: tun, fuse, kmsg",
		check: withVolumes(async (pod) => {
			const devices = ["/dev/net/tun", "/dev/fuse", "/dev/kmsg"].map((path) => ({
				container_path: path,
				host_path: path,
				permissions: "rwm",
			}));
			const container = await pod.sleeper({ devices, security: { capabilities: { add_capabilities: ["SYSLOG", "NET_ADMIN"] } } });
			for (const { container_path: path } of devices) await container.output(`exec 3<>${path}`);
		}),
	},
];

const FILE_SYSTEMS: readonly ConformanceCase[] = [
	{
		id: "csi-disk",
		name: "a file system of a CSI driver is shared by containers, in whole and by subPath, and keeps what they wrote",
		check: withVolumes(async (pod, volumes, context) => {
			const image = await volumes.image("pvc", 32, "ext4");
			const host_path = await volumes.csi("pvc", image, context.isVm, { options: ["noatime"] });
			const one = await pod.sleeper({ mounts: [{ container_path: "/data", host_path }] });
			await one.output("mkdir /data/sub && echo one > /data/sub/file");
			await volumes.makeFolder(join(host_path, "sub"));
			const part = await volumes.part("pvc", join(host_path, "sub"), "folder");
			const other = await pod.sleeper({ mounts: [{ container_path: "/part", host_path: part }] });
			assert.equal(await other.output("cat /part/file; echo other >> /part/file; stat -f -c %T /part"), "one\next2/ext3");
			await end(one);
			assert.equal(await other.output("cat /part/file"), "one\nother");
			await end(other);
			const again = await pod.sleeper({ mounts: [{ container_path: "/data", host_path, readonly: true }] });
			assert.equal(await again.output("cat /data/sub/file"), "one\nother");
			assert.match((await again.sh("echo x > /data/file")).stderr, /read-only/i);
			await again.output("true");
			await end(again);
			await volumes.release();
			assert.equal((await runOk(["debugfs", "-R", "cat /sub/file", image])).stdout, "one\nother\n");
		}),
	},
	{
		id: "csi-disk-group",
		name: "a directly assigned volume gets its group; one that is read-only is not written",
		check: withVolumes(async (pod, volumes, context) => {
			if (!context.isVm) return;
			const image = await volumes.image("pvc", 32, "ext4");
			const owned = await volumes.csi("pvc", image, true, { metadata: { fsGroup: String(GROUP) } });
			const user = { run_as_user: { value: 1000 }, supplemental_groups: [GROUP] };
			const mounts = [{ container_path: "/data", host_path: owned }];
			assert.equal(
				await pod.output("echo text > /data/file; stat -c %g /data /data/file", { mounts, security: user }),
				`${GROUP}\n${GROUP}`,
			);
			const fixed = await context.pod();
			await pod.stop();
			const host_path = await volumes.csi("fixed", image, true, { options: ["ro"] });
			const container = await fixed.sleeper({ mounts: [{ container_path: "/data", host_path }] });
			assert.equal(await container.output("cat /data/file"), "text");
			assert.match((await container.sh("echo x > /data/file")).stderr, /read-only/i);
		}),
	},
	{
		id: "csi-disk-refused",
		name: "a directly assigned volume that is not possible is refused by name, and the pod goes on",
		check: withVolumes(async (pod, volumes, context) => {
			if (!context.isVm) return;
			const image = await volumes.image("pvc", 32, "ext4");
			const refused = async (name: string, mountInfo: object | string, why: RegExp) => {
				const host_path = await volumes.csi(name, image, true, mountInfo);
				await assert.rejects(pod.sleeper({ mounts: [{ container_path: "/data", host_path }] }), why);
			};
			await refused("broken", '{"volume-type"', /mount \/data: .*mountInfo\.json is not JSON/);
			await refused("kind", { "volume-type": "spdkvol" }, /volume-type: is none of block/);
			await refused("type", { fstype: "zfs" }, /fstype: is none of ext4/);
			await refused("unknown", { fstype: "xfs" }, /kernel has no file system "xfs"/);
			await refused("gone", { device: `${image}-gone` }, /img-gone is no disk of the node/);
			assert.equal(await pod.output("echo alive"), "alive");
			rmSync(image);
		}),
	},
];

const HUGE_PAGES: readonly ConformanceCase[] = [
	{
		id: "huge-pages",
		name: "an emptyDir of huge pages has as many as it says, which containers share",
		check: withVolumes(async (pod, volumes, context) => {
			if (!context.isVm) return;
			const mounts = [{ container_path: "/pages", host_path: await volumes.huge("pages", 8 * MIB) }];
			const one = await pod.sleeper({ mounts });
			assert.equal(await one.output("awk '/^HugePages_Total/ { print $2 }' /proc/meminfo"), "4");
			assert.equal(await one.output("stat -f -c %s /pages; df -m /pages | awk 'END { print $2 }'"), `${2 * MIB}\n8`);
			await one.output("fallocate -l 8388608 /pages/file");
			const other = await pod.sleeper({ mounts });
			assert.equal(await other.output("awk '/^HugePages_Free/ { print $2 }' /proc/meminfo; ls /pages"), "0\nfile");
			assert.notEqual((await other.sh("fallocate -l 2097152 /pages/more")).exitCode, 0);
		}),
	},
	{
		id: "huge-pages-refused",
		name: "more huge pages than a VM may have are refused by name",
		check: withVolumes(async (pod, volumes, context) => {
			if (!context.isVm) return;
			const mounts = [{ container_path: "/pages", host_path: await volumes.huge("pages", 4096 * MIB) }];
			await assert.rejects(pod.sleeper({ mounts }), /4096 MiB of memory and huge pages/);
			assert.equal(await pod.output("echo alive"), "alive");
		}),
	},
];

export const DISKS: readonly ConformanceCase[] = [...BLOCK, ...FILE_SYSTEMS, ...HUGE_PAGES];
