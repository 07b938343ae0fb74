/** One VM's life with a real guest: what the client sees, what the guest sees, and how the program ends. */
import { spawn } from "node:child_process";
import { closeSync, existsSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import { holdNamespace } from "../../shim/host/namespaces.ts";
import { listenUnix } from "../../shim/host/sockets.ts";
import { closeTap, makeTap } from "../../shim/host/taps.ts";
import { TestNamespace } from "../support/netns.ts";
import { COMMAND_LINE, guestInitramfs, guestKernel } from "./guest.ts";
import { ask, bundle, request, run, shortFolder, soon, Vmm, vmConfig } from "./lab.ts";

/** A VMM for one test: killed at its end, whatever happened. */
async function start(t: Test): Promise<Vmm> {
	const vmm = await Vmm.start(shortFolder(t));
	t.teardown(() => vmm.kill());
	return vmm;
}

/** A VMM whose guest runs and listens. */
async function boot(t: Test, more: Record<string, unknown> = {}): Promise<Vmm> {
	const vmm = await start(t);
	t.equal((await vmm.put("vm.create", vmConfig(vmm.folder, more))).status, 204);
	t.equal((await vmm.put("vm.boot")).text, "");
	await vmm.ready();
	return vmm;
}

/** The processes that this one started, and theirs. */
function descendants(pid: number): number[] {
	const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8")
		.split(" ")
		.filter((text) => text !== "")
		.map(Number);
	return children.flatMap((child) => [child, ...descendants(child)]);
}

function running(pid: number): boolean {
	try {
		return readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.startsWith("Z") === false;
	} catch {
		return false;
	}
}

function image(folder: string, name: string, text: string): string {
	const file = join(folder, name);
	writeFileSync(file, text);
	truncateSync(file, 1024 * 1024);
	return file;
}

t.test("a disk is at the slot that the device tree tells, plugged before or after boot", async (t) => {
	const folder = shortFolder(t);
	const vmm = await Vmm.start(folder);
	t.teardown(() => vmm.kill());
	const socket = join(folder, "vsock");
	await vmm.put("vm.create", vmConfig(folder, { disks: [{ path: image(folder, "cold.img", "cold"), id: "cold", serial: "cold-serial" }] }));
	await vmm.put("vm.boot");
	await vmm.ready();
	const info = (await vmm.get("vm.info")).json as { device_tree: Record<string, { pci_bdf?: string }> };
	const bdf = info.device_tree["_virtio-pci-cold"]?.pci_bdf ?? "";
	t.match(bdf, /^0000:00:[0-9a-f]{2}\.0$/);
	t.match(await ask(socket, `list /sys/bus/pci/devices/${bdf}/virtio0/block`), /^vda\n$/);
	t.equal(await ask(socket, "read /sys/block/vda/serial"), "cold-serial");

	const added = await vmm.put("vm.add-disk", { path: image(folder, "hot.img", "hot"), id: "hot", readonly: true });
	t.equal(added.status, 200);
	const hot = added.json as { id: string; bdf: string };
	t.equal(hot.id, "hot");
	const block = `/sys/bus/pci/devices/${hot.bdf}`;
	// The kernel makes the disk's name in its device's folder first, and the link under /sys/block last.
	let seen = "";
	while (!seen.includes("vdb")) seen = await ask(socket, "list /sys/block");
	t.match(await ask(socket, `list ${block}/virtio3/block`), /^vdb\n$/);
	t.equal(await ask(socket, "read /sys/block/vdb/ro"), "1\n");
	t.equal((await ask(socket, "read /dev/vdb")).slice(0, 3), "hot");
	await vmm.put("vm.resize-disk", { id: "cold", desired_size: 2 * 1024 * 1024 });
	while ((await ask(socket, "read /sys/block/vda/size")) !== "4096\n");

	t.equal((await vmm.put("vm.remove-device", { id: "hot" })).status, 204);
	await vmm.removed("hot", 1);
	t.equal(await ask(socket, "list /sys/block"), "vda\n");
	t.equal((await vmm.put("vm.add-disk", { path: join(folder, "hot.img"), id: "hot" })).status, 200, "id, image and slot are free again");
});

t.test("a network card is plugged by the name of a tap, and goes again", async (t) => {
	const vmm = await boot(t);
	const socket = join(vmm.folder, "vsock");
	const added = await vmm.put("vm.add-net", { id: "n1", tap: `chq${process.pid % 100000}`, mac: "12:34:56:78:90:ab" });
	t.equal(added.status, 200, added.text);
	while (!(await ask(socket, "list /sys/class/net")).includes("eth0"));
	t.equal(await ask(socket, "read /sys/class/net/eth0/address"), "12:34:56:78:90:ab\n");
	t.same(Object.keys((await vmm.get("vm.counters")).json as object), ["n1"]);
	await vmm.put("vm.remove-device", { id: "n1" });
	await vmm.removed("n1", 1);
	t.notOk((await ask(socket, "list /sys/class/net")).includes("eth0"));
	t.equal((await vmm.put("vm.add-net", { id: "n2" })).status, 500, "without a tap's name it is refused");
});

t.test(
	"cards over descriptors, before boot and after: the taps are the VMM's, live through a reset of the guest and go with it",
	async (t) => {
		const space = new TestNamespace("card");
		t.teardown(() => space.remove());
		const ns = holdNamespace(space.path);
		t.teardown(() => ns.close());
		const vmm = await start(t);
		const socket = join(vmm.folder, "vsock");
		const add = async (id: string, queues: number, status: number): Promise<void> => {
			const fds = await makeTap(ns.fd, id, queues);
			const mac = `02:00:00:00:00:0${id.at(-1)}`;
			const answer = await vmm.request("PUT", "/api/v1/vm.add-net", { id, mac, num_queues: queues * 2 }, fds);
			closeTap(fds);
			t.equal(answer.status, status, answer.text);
		};
		await vmm.put("vm.create", vmConfig(vmm.folder, { cpus: { boot_vcpus: 2, max_vcpus: 2 } }));
		await add("cold1", 2, 204);
		await vmm.put("vm.boot");
		await vmm.ready();
		await add("hot2", 1, 200);
		const addresses = async (): Promise<string[]> =>
			Promise.all(["eth0", "eth1"].map((name) => ask(socket, `read /sys/class/net/${name}/address`)));
		while (!(await ask(socket, "list /sys/class/net")).includes("eth1"));
		t.strictSame(await addresses(), ["02:00:00:00:00:01\n", "02:00:00:00:00:02\n"]);
		t.strictSame(space.links(), ["cold1", "hot2"]);
		t.equal((await vmm.put("vm.reboot")).status, 204);
		await vmm.ready();
		t.strictSame(await addresses(), ["02:00:00:00:00:01\n", "02:00:00:00:00:02\n"]);
		await vmm.put("vm.remove-device", { id: "hot2" });
		await vmm.removed("hot2", 1);
		t.strictSame(space.links(), ["cold1"]);
		await vmm.put("vm.delete");
		t.strictSame(space.links(), []);
	},
);

t.test("pause stops the guest, resume lets it go on", async (t) => {
	const vmm = await boot(t);
	t.equal((await vmm.put("vm.pause")).status, 204);
	t.equal(((await vmm.get("vm.info")).json as { state: string }).state, "Paused");
	const answer = ask(join(vmm.folder, "vsock"), "ping");
	t.equal((await vmm.put("vm.resume")).status, 204);
	t.equal(await answer, "pong\n", "a connection made meanwhile waits for it");
});

t.test("a guest that powers off ends the program with 0", async (t) => {
	const vmm = await boot(t);
	await ask(join(vmm.folder, "vsock"), "poweroff", true);
	t.same(await soon("the end", vmm.ended), { code: 0, signal: null });
	t.same(vmm.events(), ["vmm starting", "vm booting", "vm booted", "vm shutdown", "vm deleted", "vmm shutdown"]);
	t.notOk(existsSync(vmm.api), "the API's socket is gone");
	t.notOk(existsSync(join(vmm.folder, "vsock")), "the hybrid socket is gone");
});

t.test("a guest that resets is booted again", async (t) => {
	const vmm = await boot(t);
	await ask(join(vmm.folder, "vsock"), "reboot", true);
	await vmm.event("the second boot", ({ event }) => event === "rebooted");
	await vmm.ready();
	t.equal(await ask(join(vmm.folder, "vsock"), "ping"), "pong\n");
	t.same(vmm.events().slice(-2), ["vm rebooting", "vm rebooted"]);
});

t.test("a guest that panics is reported with pvpanic, and stays with panic=0", async (t) => {
	const vmm = await start(t);
	const payload = { kernel: guestKernel(), initramfs: guestInitramfs(), cmdline: COMMAND_LINE.replace("panic=-1", "panic=0") };
	await vmm.put("vm.create", vmConfig(vmm.folder, { payload, pvpanic: true }));
	await vmm.put("vm.boot");
	await vmm.ready();
	const kernelReports = readFileSync(join(guestKernel(), "../config"), "utf8").includes("CONFIG_PVPANIC_PCI=y");
	await ask(join(vmm.folder, "vsock"), "panic", true).catch(() => "");
	if (kernelReports) await vmm.event("the panic", ({ source, event }) => source === "guest" && event === "panic");
	t.equal(((await vmm.get("vm.info")).json as { state: string }).state, "Running");
});

t.test("the balloon takes and gives back, memory_actual_size follows", async (t) => {
	const MIB = 1024 * 1024;
	const vmm = await boot(t, { balloon: { size: 0, deflate_on_oom: true, free_page_reporting: true } });
	const actual = async (): Promise<number> => ((await vmm.get("vm.info")).json as { memory_actual_size: number }).memory_actual_size;
	t.equal((await vmm.put("vm.resize", { desired_balloon: 64 * MIB })).status, 204);
	while ((await actual()) !== 192 * MIB);
	t.equal((await vmm.put("vm.resize", { desired_balloon: 0 })).status, 204);
	while ((await actual()) !== 256 * MIB);
	t.pass("it went down to 192 MiB and back to 256");
});

for (const [signal, code] of [
	["SIGTERM", 0],
	["SIGINT", 0],
] as const) {
	t.test(`${signal} ends the program with ${code} and the VM with it`, async (t) => {
		const vmm = await boot(t);
		const children = descendants(vmm.process.pid ?? 0);
		t.equal(children.length, 2, "QEMU and the vsock back end");
		vmm.process.kill(signal);
		t.same(await soon("the end", vmm.ended), { code, signal: null });
		t.same(children.filter(running), []);
		t.same(vmm.events().slice(-3), ["vm shutdown", "vm deleted", "vmm shutdown"]);
		t.notOk(existsSync(vmm.api));
	});
}

t.test("SIGKILL takes QEMU and the vsock back end along", async (t) => {
	const vmm = await boot(t);
	const children = descendants(vmm.process.pid ?? 0);
	t.equal(children.length, 2);
	await vmm.kill();
	while (children.some(running)) await new Promise((resolve) => setImmediate(resolve));
	t.ok(existsSync(vmm.api), "the sockets stay, as the real VMM's do");
});

t.test("QEMU's death ends the program with 0, as a virtual processor's does", async (t) => {
	const vmm = await boot(t);
	const qemu = descendants(vmm.process.pid ?? 0).find((pid) => readFileSync(`/proc/${pid}/comm`, "utf8").startsWith("qemu"));
	process.kill(qemu ?? 0, "SIGKILL");
	t.same(await soon("the end", vmm.ended), { code: 0, signal: null });
	t.same(vmm.events().slice(-3), ["vm shutdown", "vm deleted", "vmm shutdown"]);
});

t.test("a boot that fails leaves nothing behind, and says why", async (t) => {
	const vmm = await start(t);
	const folder = vmm.folder;
	const faults: [Record<string, unknown>, string[]][] = [
		[{ payload: { kernel: join(folder, "none") } }, ["Cannot open kernel file", "No such file or directory (os error 2)"]],
		[
			{ payload: { kernel: guestKernel(), initramfs: join(folder, "none") } },
			["Cannot open initramfs file", "No such file or directory (os error 2)"],
		],
		[{ disks: [{ path: join(folder, "none") }] }, ["Error from device manager", "Cannot open disk path"]],
		[{ vsock: { cid: 3, socket: join(folder, "events") } }, ["Error from device manager", "Cannot create virtio-vsock backend"]],
		[{ serial: { mode: "File", file: join(folder, "none/serial") } }, ["QEMU could not start the VM"]],
	];
	for (const [more, chain] of faults) {
		await vmm.put("vm.create", vmConfig(folder, more));
		const answer = await vmm.put("vm.boot");
		t.equal(answer.status, 500);
		t.same((answer.json as string[]).slice(2, 2 + chain.length), chain);
		t.equal(((await vmm.get("vm.info")).json as { state: string }).state, "Created");
		await vmm.put("vm.delete");
	}
	t.same(descendants(vmm.process.pid ?? 0), [], "no child is left");
	t.notOk(existsSync(join(folder, "vsock")));
	await vmm.put("vm.create", vmConfig(folder));
	t.equal((await vmm.put("vm.boot")).status, 204, "a good VM boots after them");
});

t.test("an image that another VMM writes is locked", async (t) => {
	const folder = shortFolder(t);
	const file = image(folder, "shared.img", "");
	const vmms: Vmm[] = [];
	for (const name of ["first", "second"]) {
		mkdirSync(join(folder, name));
		const vmm = await Vmm.start(join(folder, name));
		t.teardown(() => vmm.kill());
		await vmm.put("vm.create", vmConfig(vmm.folder, name === "first" ? { disks: [{ path: file }] } : {}));
		t.equal((await vmm.put("vm.boot")).status, 204);
		vmms.push(vmm);
	}
	const locked = [
		"Error from device manager",
		"Cannot lock images of all block devices",
		`Failed to get Write lock for disk image: ${file}`,
		"The file is already locked",
	];
	for (const vmm of vmms) t.same(((await vmm.put("vm.add-disk", { path: file, id: "again" })).json as string[]).slice(2), locked);
});

t.test("the API listens on a descriptor that it inherits", async (t) => {
	const path = join(shortFolder(t), "inherited.sock");
	const fd = listenUnix(path);
	const child = spawn(process.execPath, [bundle(), "--api-socket", "fd=3"], { env: {}, stdio: ["ignore", "ignore", "inherit", fd] });
	closeSync(fd);
	const ended = new Promise<number | null>((resolve) => child.once("close", resolve));
	t.teardown(() => child.kill("SIGKILL"));
	t.equal((await request(path, "GET", "/api/v1/vmm.ping")).status, 200, "a request that came before waits for it");
	t.equal((await request(path, "PUT", "/api/v1/vmm.shutdown")).status, 200);
	t.equal(await soon("the end", ended), 0);
	t.ok(existsSync(path), "a socket that was handed over stays");
});

t.test("the command line is checked as the real one's", async (t) => {
	const folder = shortFolder(t);
	const version = await run(["--version"]);
	t.equal(version.code, 0);
	t.match(version.out, /^cloud-hypervisor v53/);
	t.equal((await run(["--nonsense"])).code, 2);
	t.match((await run(["--nonsense"])).err, /unexpected argument '--nonsense'/);
	t.equal((await run([])).code, 2);
	t.equal((await run(["--api-socket"])).code, 2);
	t.equal((await run(["--api-socket", "fd=x"])).code, 1);
	t.equal((await run(["--api-socket", `path=${folder}/none/api.sock`])).code, 1);
	t.equal((await run(["--api-socket", `path=${folder}/${"l".repeat(120)}`])).code, 1, "a path that no socket can have");
	t.equal((await run(["--api-socket", `path=${folder}/api.sock`, "--event-monitor", folder])).code, 1);
	const missing = await run(["--api-socket", `path=${folder}/api.sock`], { CH_QEMU_SYSTEM: join(folder, "none") });
	t.equal(missing.code, 1);
	t.match(missing.err, /qemu-system-x86_64 is not executable/);
});
