/** Templates that no VMM wrote: whole, and of no use for a VM. */
import { mkdirSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { keepTemplate } from "../../shim/pod/snapshot/template.ts";
import type { Template } from "../../shim/pod/snapshot/template.ts";
import { planVm } from "../../shim/vmm/plan.ts";

/** How long the memory of such a template is. */
export const TEMPLATE_MEMORY_BYTES = 4 * 1024 * 1024;
const AGENT = {
	...{ version: "1", streams: true, limits: true, files: true, forward: true, volumes: true, mounts: true, pci: true, hugepages: true },
	...{ verity: true, scratch: true, damage: true, lateBinding: true, seccomp: true },
};
const CONFIG = planVm({
	vcpus: 1,
	memoryMiB: 256,
	kernelPath: "/k",
	cmdline: "",
	disks: [],
	vsock: { cid: 3, socketPath: "/w/a/vsock.sock" },
});
/** Makes one. @param name the template's, and part of its kind */
export function falseTemplate(stateDir: string, name = "aa"): Template {
	const snapshot = join(stateDir, "w", name);
	mkdirSync(snapshot, { recursive: true });
	writeFileSync(join(snapshot, "config.json"), JSON.stringify(CONFIG));
	writeFileSync(join(snapshot, "state.json"), "state");
	writeFileSync(join(snapshot, "memory-ranges"), "memory");
	truncateSync(join(snapshot, "memory-ranges"), TEMPLATE_MEMORY_BYTES);
	return keepTemplate(stateDir, snapshot, {
		name,
		key: `kind ${name}`,
		size: { vcpus: 1, memoryMib: 256 },
		agent: AGENT,
		scratchAddress: "",
	});
}
