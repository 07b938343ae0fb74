import { join } from "node:path";
import t from "tap";
import { ShimError } from "../../shim/base/errors.ts";
import { GuestEnd, withKvmRemedy } from "../../shim/pod/boot.ts";

t.test("a hypervisor's failure where KVM can't be opened says so; other failures keep their remedy", async (t) => {
	const folder = t.testdir({ kvm: "" });
	const failure = new ShimError("vmm.api", "vm.boot failed");
	const told = await withKvmRemedy(failure, join(folder, "none"));
	t.equal(told.message, failure.message);
	t.equal(told.code, failure.code);
	t.match(told.remedy, /none can't be opened .*ENOENT.*load kvm_amd/);
	t.equal(await withKvmRemedy(failure, join(folder, "kvm")), failure);
	const other = new ShimError("storage.full", "no space");
	t.equal(await withKvmRemedy(other, join(folder, "none")), other);
});

t.test("a guest's end is what the VMM says of reboot, shutdown and panic, and nothing else", async (t) => {
	const event = (source: string, name: string) => ({ timestampMs: 0, source, event: name, properties: {} });
	for (const [source, name] of [
		["vm", "rebooting"],
		["vm", "shutdown"],
		["guest", "panic"],
	] as const) {
		const end = new GuestEnd();
		end.accept(event("vm", "booted"));
		end.accept(event("virtio-device", "activated"));
		end.accept(event(source, name));
		t.match(await end.ended, new RegExp(`${source} ${name}`));
	}
});
