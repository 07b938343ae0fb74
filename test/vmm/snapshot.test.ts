/** The configuration of a snapshot, for another VM. */
import t from "tap";
import { isNoOnDemand, VmmApiError } from "../../shim/vmm/api-error.ts";
import { planVm } from "../../shim/vmm/plan.ts";
import { ownConfig } from "../../shim/vmm/snapshot.ts";

const template = planVm({
	...{ vcpus: 1, memoryMiB: 256, kernelPath: "/k", cmdline: "quiet", sharedMemory: true, serialFile: "/w/a/console.log" },
	disks: [{ id: "scratch", path: "/scratch/a.img", readonly: false }],
	vsock: { cid: 3, socketPath: "/w/a/vsock.sock" },
	landlockRules: [{ path: "/w/a", access: "rw" }],
});
const own = {
	...{ vsock: "/p/b/vsock.sock", serialFile: "/p/b/console.log", disks: { scratch: "/scratch/b.img" }, sharedMemory: false },
	landlockRules: [{ path: "/p/b", access: "rw" }],
};

t.test("its files are the VM's own, and all else is as it was", async (t) => {
	const config: unknown = JSON.parse(ownConfig(JSON.stringify({ ...template, unknown: [1] }), own));
	t.same(config, {
		...template,
		unknown: [1],
		memory: { ...template.memory, shared: false },
		vsock: { cid: 3, socket: "/p/b/vsock.sock" },
		serial: { mode: "File", file: "/p/b/console.log" },
		disks: [{ ...template.disks?.[0], path: "/scratch/b.img" }],
		landlock_rules: own.landlockRules,
	});
	t.notMatch(JSON.stringify(config), /\/a/u, "nothing of the template's VM is left");
});

t.test("what is no VM's configuration, or has a disk of nobody's, is refused", async (t) => {
	for (const text of ["", "null", "{}", '{"vsock":{"socket":"/a"}}']) t.throws(() => ownConfig(text, own), Error, text);
	t.throws(() => ownConfig(JSON.stringify(template), { ...own, disks: {} }), /a disk scratch, for which there is no file/u);
	t.throws(() => ownConfig(JSON.stringify({ ...template, disks: [{ path: "/d" }] }), own), /a disk without a name/u);
});

t.test("a VMM that can't bring memory back on demand is told from one that fails", async (t) => {
	const refusal = (...chain: string[]): VmmApiError =>
		new VmmApiError("vm.restore", 500, ["Error from API", "The VM could not be restored", ...chain]);
	t.ok(isNoOnDemand(refusal("Memory manager error", "Cannot restore VM", "On-demand restore failed", "Failed to create userfaultfd")));
	const unknown = "unknown variant `OnDemand`, expected `Copy` at line 1 column 90";
	t.ok(isNoOnDemand(new VmmApiError("vm.restore", 400, ["Failed to deserialize JSON", unknown])));
	t.notOk(isNoOnDemand(refusal("Cannot restore VM", "Failed to receive migratable component snapshot")));
	t.notOk(isNoOnDemand(new Error("On-demand restore failed")));
});
