/** The room against a program that serves the whole API: the stand-in, up to the point where a guest would start. */

import { chmodSync, existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { t } from "tap";
import type { Test } from "tap";

import { deferred } from "../../shim/base/deadline.ts";
import { launchVmm, vmmFiles } from "../../shim/vmm/launcher.ts";
import type { Vmm, VmmEvent } from "../../shim/vmm/launcher.ts";
import { planVm } from "../../shim/vmm/plan.ts";
import { failure, shortFolder } from "./tools.ts";

/** A program that runs the stand-in from its sources. */
async function launch(t: Test, onEvent: (event: VmmEvent) => void): Promise<{ vmm: Vmm; folder: string }> {
	const folder = shortFolder(t);
	const hypervisorPath = join(folder, "program");
	const main = new URL("../../ch-qemu/main.ts", import.meta.url).pathname;
	const tsx = new URL("../../node_modules/tsx/dist/esm/index.mjs", import.meta.url).pathname;
	writeFileSync(hypervisorPath, `#!/bin/sh\nexec ${process.execPath} --import ${tsx} ${main} "$@"\n`);
	chmodSync(hypervisorPath, 0o755);
	const vmm = await launchVmm({ hypervisorPath, folder, logLevel: "info", onEvent });
	t.teardown(() => vmm.kill());
	return { vmm, folder };
}

// A VMM does not keep its owner's program alive.
const alive = setInterval(() => undefined, 60_000);
t.teardown(() => clearInterval(alive));

t.test("launch, ask, create, fail to boot, delete, shut down", async (t) => {
	const seen: string[] = [];
	const ended = deferred<void>();
	const { vmm, folder } = await launch(t, ({ source, event }) => {
		seen.push(`${source} ${event}`);
		if (event === "shutdown" && source === "vmm") ended.resolve();
	});
	const { client } = vmm;
	t.match(await client.ping(), { version: String, pid: vmm.pid });
	t.match((await failure(client.info())).message, /HTTP 404\): The VM info is not available: VM is not created$/);

	const socketPath = join(folder, "vsock.sock");
	const spec = { vcpus: 1, memoryMiB: 128, kernelPath: join(folder, "no-kernel"), cmdline: "", disks: [], vsock: { cid: 3, socketPath } };
	const config = planVm(spec);
	await client.create(config);
	t.match(await client.info(), { state: "Created", config: { ...config, payload: { kernel: spec.kernelPath } } });
	t.equal(await client.addDisk({ id: "d1", path: join(folder, "no-disk"), readonly: true }), undefined, "no slot before boot");
	const refused = await failure(client.boot());
	t.match(refused, { reason: "vmm.api", message: /vm\.boot \(HTTP 500\): The VM could not boot: / });
	t.notOk(existsSync(socketPath));
	await client.delete();
	await client.vmmShutdown();
	t.match(await vmm.exited, { code: 0 });
	await ended.promise;
	t.same(seen.slice(0, 2), ["vmm starting", "vm booting"]);
});

t.test("its death is noticed by the call that waits", async (t) => {
	const { vmm, folder } = await launch(t, () => undefined);
	await vmm.client.ping();
	const [lost] = await Promise.all([failure(vmm.client.ping().then(() => vmm.client.boot())), vmm.kill()]);
	t.equal(lost.reason, "vmm.exited");
	t.match(lost.message, /was killed by SIGKILL/);
	t.ok(existsSync(vmmFiles(folder).apiSocket), "the socket's file is left for the owner of the folder");
});
