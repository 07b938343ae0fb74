/** The pure parts: bodies by table, QEMU's command line, slots, the configuration's checks. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { VmmError } from "../../ch-qemu/api-error.ts";
import { DeviceSet, imageFormat } from "../../ch-qemu/device-set.ts";
import { bdfOf, PciSlots } from "../../ch-qemu/pci-slots.ts";
import { bridgeDevices } from "../../ch-qemu/qemu-devices.ts";
import { qemuArguments } from "../../ch-qemu/qemu-arguments.ts";
import { decode } from "../../ch-qemu/schema.ts";
import { findTools } from "../../ch-qemu/tools.ts";
import { validateConfig } from "../../ch-qemu/validate.ts";
import { DISK, type DiskConfig, NET, VM, type VmConfig } from "../../ch-qemu/vm-config.ts";

const messageOf = (text: string, struct = VM): string => {
	try {
		decode(struct, text);
		return "";
	} catch (error) {
		return (error as Error).message;
	}
};

t.test("a body is read by its table: unknown fields go, defaults come, null is nothing", async (t) => {
	const disk = decode<DiskConfig>(DISK, '{"path":"/x","nonesuch":1,"id":null,"iommu":false}');
	t.same(disk, {
		pci_segment: 0,
		path: "/x",
		readonly: false,
		direct: false,
		num_queues: 1,
		queue_size: 128,
		vhost_user: false,
		disable_io_uring: false,
		disable_aio: false,
		backing_files: false,
		sparse: true,
		image_type: "Unknown",
		lock_granularity: "ByteRange",
	});
	t.equal(decode<VmConfig>(VM, "{}").memory.size, 512 * 1024 * 1024);
});

t.test("what is wrong with a body is said as serde says it", async (t) => {
	t.equal(messageOf('{"cpus":{"boot_vcpus":"one","max_vcpus":1}}'), 'invalid type: string "one", expected u32 at line 1 column 27');
	t.equal(messageOf('{"cpus":{"boot_vcpus":1}}'), "missing field `max_vcpus` at line 1 column 24");
	t.equal(
		messageOf('{"serial":{"mode":"null"}}'),
		"unknown variant `null`, expected one of `Off`, `Pty`, `Tty`, `File`, `Socket`, `Null` at line 1 column 24",
	);
	t.equal(messageOf('{"memory":{"size":-1}}'), "invalid value: integer `-1`, expected u64 at line 1 column 20");
	t.equal(messageOf('{"disks":{}}'), "invalid type: map, expected a sequence at line 1 column 10");
	t.equal(
		messageOf('{"mac":"nonsense"}', NET),
		"The provided MAC address is invalid: parsing of nonsense into a MAC address failed at line 1 column 18",
	);
	t.equal(messageOf('{"a":1,}'), "trailing comma at line 1 column 8");
	t.equal(messageOf(""), "EOF while parsing a value at line 1 column 0");
	t.match(messageOf("[".repeat(200)), /recursion limit exceeded/);
});

t.test("slots are given from 2 on, pinned ones once, freed ones last and again", async (t) => {
	const slots = new PciSlots();
	t.equal(slots.take("a"), 2);
	t.equal(slots.take("b", 0, 3), 3);
	t.equal(slots.take("c"), 4);
	t.throws(() => slots.take("d", 0, 3), VmmError);
	t.throws(() => slots.take("d", 0, 1), VmmError, "the ISA bridge's");
	for (const slot of [4, 3]) slots.free({ segment: 0, slot });
	t.equal(slots.take("d", 0, 3), 3, "a wish counts");
	slots.free({ segment: 0, slot: 3 });
	for (let i = 0; i < 27; i++) t.equal(slots.take(`x${i}`), 5 + i);
	t.equal(slots.take("e"), 4, "the longest free");
	t.equal(slots.take("f"), 3);
	t.throws(() => slots.take("one too many"), VmmError);
});

t.test("a further segment is a bus behind a bridge, with 31 slots", async (t) => {
	const slots = new PciSlots(3);
	t.throws(() => slots.take("a", 0, 31), VmmError, "a bridge's");
	t.throws(() => slots.take("a", 0, 30), VmmError, "a bridge's");
	t.throws(() => slots.take("a", 3), VmmError, "there is no such segment");
	const taken = Array.from({ length: 31 }, (_, i) => slots.take(`x${i}`, 2));
	t.equal(taken[0], 1);
	t.equal(taken[30], 31);
	t.throws(() => slots.take("one too many", 2), VmmError);
	t.equal(slots.take("b", 1), 1);
	t.equal(bdfOf({ segment: 1, slot: 10 }), "0000:01:0a.0", "where the guest sees it");
	t.same(
		bridgeDevices(3).map(({ driver, id, bus, addr }) => [driver, id ?? "", bus, addr]),
		[
			["pci-bridge", "segment1", "pci.0", "0x1e"],
			["pci-testdev", "", "segment1", "0x0"],
			["pci-bridge", "segment2", "pci.0", "0x1f"],
			["pci-testdev", "", "segment2", "0x0"],
		],
	);
	t.same(bridgeDevices(1), []);
});

t.test("a configuration becomes QEMU's command line", async (t) => {
	const folder = t.testdir({ "a,b.img": "" });
	const config = decode<VmConfig>(
		VM,
		JSON.stringify({
			payload: { kernel: "/k", initramfs: "/i", cmdline: "quiet x,y" },
			cpus: { boot_vcpus: 2, max_vcpus: 4 },
			memory: { size: 1 << 28, hotplug_size: 1 << 29, shared: true },
			disks: [{ path: join(folder, "a,b.img"), readonly: true }],
			serial: { mode: "File", file: "/s,t" },
			console: { mode: "Off" },
			vsock: { cid: 3, socket: "/v" },
		}),
	);
	const devices = new DeviceSet();
	devices.addAll(config);
	const args = qemuArguments({
		config,
		devices: [...devices.all.values()],
		accelerator: "tcg",
		firmware: undefined,
		counterKhz: 2_000_000,
	});
	const value = (name: string): string | undefined => args[args.indexOf(name) + 1];
	t.equal(value("-smp"), "cpus=2,maxcpus=4");
	t.equal(value("-m"), "size=268435456B,slots=8,maxmem=805306368B");
	t.equal(value("-append"), "quiet x,y tsc_early_khz=2000000", "an emulated guest is told the rate of its counter");
	t.ok(args.includes("file,id=serial,path=/s,,t"), "commas are doubled where QEMU splits at them");
	t.match(JSON.parse(value("-blockdev") ?? ""), { "read-only": true, file: { filename: join(folder, "a,b.img") } });
	const placed = args.filter((_, i) => args[i - 1] === "-device").map((text) => JSON.parse(text) as { driver: string; addr: string });
	t.same(
		placed.map(({ driver, addr }) => [driver, addr]),
		[
			["virtio-blk-pci", "0x2"],
			["virtio-rng-pci", "0x3"],
			["vhost-user-vsock-pci", "0x4"],
		],
	);
	t.equal(config.disks?.[0]?.id, "_disk0", "the configuration has the id that the device got");
	t.equal(config.vsock?.id, "_vsock1", "one counter for all kinds");
});

t.test("an image's format is what its first bytes say", async (t) => {
	const folder = t.testdir();
	const file = (name: string, head: string): string => {
		writeFileSync(join(folder, name), head, "latin1");
		return join(folder, name);
	};
	t.equal(imageFormat(file("q", "QFI\xfb\0\0\0\x03"), "Unknown"), "qcow2");
	t.equal(imageFormat(file("h", "vhdxfile"), "Unknown"), "vhdx");
	t.equal(imageFormat(file("r", "QFI\xfb\0\0\0\x03"), "Raw"), "raw", "as stated");
	t.throws(() => imageFormat(join(folder, "none"), "Unknown"), VmmError);
});

t.test("the checks of a configuration", async (t) => {
	const refusal = (change: Record<string, unknown>): string => {
		const config = decode<VmConfig>(VM, JSON.stringify({ payload: { kernel: "/k" }, ...change }));
		try {
			validateConfig(config);
			return "";
		} catch (error) {
			return error instanceof VmmError ? `${error.status} ${error.chain[1]}` : String(error);
		}
	};
	t.equal(refusal({}), "");
	t.equal(refusal({ payload: {} }), "400 Payload configuration is not bootable");
	t.equal(
		refusal({
			disks: [
				{ path: "/a", id: "d" },
				{ path: "/b", id: "d" },
			],
		}),
		"409 Identifier d is not unique",
	);
	t.equal(refusal({ disks: [{ path: "/a", id: "__x" }] }), "400 Identifier __x is not valid");
	t.equal(refusal({ disks: [{ path: "/a", num_queues: 2 }] }), "400 Queue count (2) must not exceed boot vCPUs (1)");
	t.equal(refusal({ disks: [{ path: "/a", queue_size: 100 }] }), "400 Queue size must be a power of 2 no greater than 32768: 100");
	t.equal(
		refusal({ disks: [{ path: "/a", serial: "x".repeat(21) }] }),
		"400 Block device serial length (21) exceeds maximum allowed length (20)",
	);
	t.equal(refusal({ cpus: { boot_vcpus: 2, max_vcpus: 1 } }), "400 Max CPUs (1) lower than boot CPUs (2)");
	t.equal(refusal({ vsock: { cid: 2, socket: "/v" } }), "400 2 is a special VSOCK CID");
	t.equal(refusal({ memory: { size: 1024 }, balloon: { size: 2048 } }), "400 Balloon size (2048) greater than RAM (1024)");
	t.equal(refusal({ platform: { sev_snp: true } }), "400 SEV-SNP requires an IGVM payload (--payload igvm=<path>)");
});

t.test("the programs are found by variable, by file, by path", async (t) => {
	const folder = t.testdir({ bin: {}, "ch-qemu.json": JSON.stringify({ qemu: "/bin/true", vsock: "/bin/false" }) });
	const program = join(folder, "ch-qemu");
	t.match(findTools({}, program), { qemu: "/bin/true", vsock: "/bin/false" });
	t.match(findTools({ CH_QEMU_SYSTEM: "/bin/sh", CH_QEMU_VSOCK: "/bin/cat" }, program), { qemu: "/bin/sh", vsock: "/bin/cat" });
	t.throws(() => findTools({ CH_QEMU_SYSTEM: join(folder, "none") }, program), { message: /not executable/ });
	t.throws(() => findTools({ PATH: join(folder, "bin") }, join(folder, "bin/ch-qemu")), { message: /qemu-system-x86_64 is not on PATH/ });
});
