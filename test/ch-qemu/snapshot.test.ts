/** Snapshots with a real guest: what was in its memory is there again in each VM that is made of one, and each goes its own way. */
import { mkdirSync, readFileSync, statSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import { ask, dial, everything, shortFolder, soon, Vmm, vmConfig } from "./lab.ts";

const MIB = 1024 * 1024;
const HOSTNAME = "/proc/sys/kernel/hostname";
const TOUCHED_MIB = 24;

async function start(t: Test): Promise<Vmm> {
	const vmm = await Vmm.start(shortFolder(t));
	t.teardown(() => vmm.kill());
	return vmm;
}

/** A folder that a VMM restores from: the snapshot's files, with the sockets and files of that VMM. */
function ownSnapshot(snapshot: string, folder: string): string {
	const own = join(folder, "restore");
	mkdirSync(own);
	for (const name of ["state.json", "memory-ranges"]) symlinkSync(join(snapshot, name), join(own, name));
	const config = JSON.parse(readFileSync(join(snapshot, "config.json"), "utf8")) as Record<string, Record<string, unknown>>;
	config["vsock"] = { ...config["vsock"], socket: join(folder, "vsock") };
	config["serial"] = { ...config["serial"], file: join(folder, "serial") };
	writeFileSync(join(own, "config.json"), JSON.stringify(config));
	return own;
}

async function restored(t: Test, snapshot: string, more: Record<string, unknown> = {}): Promise<Vmm> {
	const vmm = await start(t);
	const answer = await vmm.put("vm.restore", { source_url: `file://${ownSnapshot(snapshot, vmm.folder)}`, ...more });
	t.equal(answer.text, "");
	t.equal(answer.status, 204);
	return vmm;
}

const stateOf = async (vmm: Vmm): Promise<unknown> => ((await vmm.get("vm.info")).json as { state: string }).state;

t.test("a snapshot", async (t) => {
	const source = await start(t);
	await source.put("vm.create", vmConfig(source.folder, { balloon: { size: 0, free_page_reporting: true } }));
	await source.put("vm.boot");
	await source.ready();
	const socket = join(source.folder, "vsock");
	const snapshot = join(source.folder, "snapshot");
	mkdirSync(snapshot);
	await ask(socket, `write ${HOSTNAME} template`);
	const before = await dial(socket);
	before.socket.write(`touch ${TOUCHED_MIB}\n`);
	await soon("the guest's memory", new Promise((resolve) => before.socket.once("readable", resolve)));

	await t.test("is taken of a paused VM, into three files, once", async (t) => {
		t.equal((await source.put("vm.snapshot", { destination_url: `file://${snapshot}` })).status, 500);
		await source.put("vm.pause");
		const taken = await source.put("vm.snapshot", { destination_url: `file://${snapshot}` });
		t.equal(taken.text, "");
		t.equal(taken.status, 204);
		const memory = statSync(join(snapshot, "memory-ranges"));
		t.equal(memory.size, 256 * MIB);
		t.ok(memory.blocks * 512 < 160 * MIB, "what the guest never touched takes no room");
		t.equal(memory.mode & 0o077, 0, "it is for its owner alone");
		const again = await source.put("vm.snapshot", { destination_url: `file://${snapshot}` });
		t.same(again.json, [
			"Error from API",
			"The VM could not be snapshotted",
			"Cannot send VM snapshot",
			"Failed to send migratable component snapshot",
			"Error creating VM config snapshot file",
			"File exists (os error 17)",
		]);
	});

	await t.test("leaves the VM as it was", async (t) => {
		t.equal(await stateOf(source), "Paused");
		t.equal((await source.put("vm.resume")).status, 204);
		t.equal(await ask(socket, `read ${HOSTNAME}`), "template\n");
		await soon(
			"the end of a connection of before",
			everything(before.socket).catch(() => undefined),
		);
		await ask(socket, `write ${HOSTNAME} later`);
		await source.put("vmm.shutdown");
		await soon("the VMM's end", source.ended);
	});

	await t.test("becomes two VMs at one time, which go their own ways", async (t) => {
		const one = await restored(t, snapshot);
		t.equal(await stateOf(one), "Paused");
		t.equal((await one.put("vm.resume")).status, 204);
		const other = await restored(t, snapshot, { resume: true, memory_restore_mode: "OnDemand" });
		t.equal(await stateOf(other), "Running");
		const names = ["one", "other"];
		for (const [at, vmm] of [one, other].entries()) {
			const own = join(vmm.folder, "vsock");
			t.equal(await ask(own, `read ${HOSTNAME}`), "template\n");
			await ask(own, `write ${HOSTNAME} ${names[at]}`);
		}
		for (const [at, vmm] of [one, other].entries()) {
			const own = join(vmm.folder, "vsock");
			// More connections than there were before: none has the ports of one that the guest still holds.
			for (let count = 0; count < 8; count++) t.equal(await ask(own, `read ${HOSTNAME}`), `${names[at]}\n`);
			const image = join(vmm.folder, "hot.img");
			writeFileSync(image, "hot");
			truncateSync(image, MIB);
			t.equal((await vmm.put("vm.add-disk", { path: image, id: "hot", readonly: true })).status, 200);
			let seen = "";
			while (!seen.includes("vda")) seen = await ask(own, "list /sys/block");
			t.equal((await ask(own, "read /dev/vda")).slice(0, 3), "hot");
			t.same(
				vmm.events().filter((name) => name.startsWith("vm ")),
				["vm restoring", "vm restored", "vm resuming", "vm resumed"],
			);
		}
		const again = await one.put("vm.restore", { source_url: `file://${snapshot}` });
		t.same(again.json, ["Error from API", "The VM could not be restored", "VM is already created"]);
	});

	await t.test("that is damaged is refused, and the VMM can be asked again", async (t) => {
		const vmm = await start(t);
		const own = ownSnapshot(snapshot, vmm.folder);
		const state = JSON.parse(readFileSync(join(snapshot, "state.json"), "utf8")) as { stream: string };
		const bad = join(vmm.folder, "bad");
		mkdirSync(bad);
		symlinkSync(join(snapshot, "memory-ranges"), join(bad, "memory-ranges"));
		symlinkSync(join(own, "config.json"), join(bad, "config.json"));
		writeFileSync(join(bad, "state.json"), JSON.stringify({ ...state, stream: state.stream.slice(0, 4000) }));
		const refused = await vmm.put("vm.restore", { source_url: `file://${bad}` });
		t.equal(refused.status, 500);
		t.match(refused.json, ["Error from API", "The VM could not be restored", "Cannot restore VM"]);
		t.equal((await vmm.put("vm.restore", { source_url: `file://${own}`, resume: true })).text, "");
		t.equal(await ask(join(vmm.folder, "vsock"), `read ${HOSTNAME}`), "template\n");
	});
});
