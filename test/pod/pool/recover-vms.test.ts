/** What a new snpd does with VMs that an earlier one has left half booted. Those that are ready are in test/e2e/pool.test.ts. */
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { Log } from "../../../shim/base/log.ts";
import { poolFolder } from "../../../shim/base/names.ts";
import { HostCgroup } from "../../../shim/host/cgroups.ts";
import { startTimeOf } from "../../../shim/host/processes.ts";
import { writeVmRecord } from "../../../shim/pod/pool/record.ts";
import type { VmRecord } from "../../../shim/pod/pool/record.ts";
import { recoverPoolVms } from "../../../shim/pod/pool/recover-vms.ts";
import { API_SOCKET_OPTION } from "../../../shim/vmm/launcher.ts";

const log = new Log(() => undefined, "error");

t.test(
	"a VM that was not ready is ended, with its process, group, disk file and folder; so is one whose document is damaged",
	async (t) => {
		const stateDir = mkdtempSync("/tmp/pool-");
		t.teardown(() => rmSync(stateDir, { recursive: true, force: true }));
		const group = new HostCgroup(`/snp-test-${randomBytes(4).toString("hex")}`);
		const scratch = join(stateDir, "vm.img");
		const begin = (name: string): { folder: string; child: ReturnType<typeof spawn>; ended: Promise<unknown> } => {
			const folder = join(poolFolder(stateDir), name);
			mkdirSync(folder, { recursive: true });
			const child = spawn("sh", ["-c", "read word", "vmm", API_SOCKET_OPTION], { cwd: folder, detached: true });
			const ended = once(child, "exit");
			t.teardown(() => {
				try {
					process.kill(-(child.pid ?? 0), "SIGKILL");
				} catch {
					// Nothing of it is left.
				}
			});
			return { folder, child, ended };
		};
		const [booting, damaged] = [begin("booting"), begin("damaged")];
		t.teardown(() => group.remove());
		await group.join(booting.child.pid ?? 0);
		const pid = booting.child.pid ?? 0;
		const vmm = { pid, startTime: String(startTimeOf(pid) ?? 0n) };
		const record: VmRecord = { version: 1, key: "k", vcpus: 1, memoryMib: 256, cgroup: group.path, scratch, vmm, ready: null };
		writeVmRecord(booting.folder, record);
		writeFileSync(scratch, "");
		writeFileSync(join(damaged.folder, "vm.json"), "{");
		t.strictSame(await recoverPoolVms({ stateDir, log }), []);
		await Promise.all([booting.ended, damaged.ended]);
		t.strictSame(readdirSync(poolFolder(stateDir)), []);
		t.notOk(existsSync(scratch));
		t.ok(group.removeEmpty());
	},
);

t.test("no folder means no VMs", async (t) => {
	t.strictSame(await recoverPoolVms({ stateDir: t.testdir({}), log }), []);
});
