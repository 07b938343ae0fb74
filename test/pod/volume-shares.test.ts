/** Shared folders that an earlier snpd left half done. Whole ones are in test/e2e/shared-folders.test.ts. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, realpathSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { Log } from "../../shim/base/log.ts";
import { defaultConfig } from "../../shim/config/schema.ts";
import { VolumeShares } from "../../shim/pod/volume-shares.ts";
import type { ShareRecord } from "../../shim/pod/volume-shares.ts";
import { SHARE_OPTION } from "../../shim/vmm/share-daemon.ts";

// What is watched does not keep the program alive.
const alive = setInterval(() => undefined, 60_000);
t.teardown(() => clearInterval(alive));

t.test("a virtiofsd that was started, and is not in the journal yet, goes with its files; one of another folder stays", async (t) => {
	const folder = realpathSync(t.testdir({ pod: {} }));
	const pod = join(folder, "pod");
	const start = (source: string) => {
		const options = `source=${source},xattr,cache=auto`;
		const child = spawn("sh", ["-c", "read word", "virtiofsd", SHARE_OPTION, "-o", options], { cwd: pod });
		t.teardown(() => child.kill("SIGKILL"));
		return { child, ended: once(child, "exit") };
	};
	const [lost, other] = [start("/data"), start("/data/other")];
	await Promise.all([lost, other].map(({ child }) => once(child, "spawn")));
	for (const name of ["share1.sock", "share1.sock.log"]) writeFileSync(join(pod, name), "");
	const host = {
		...{ config: defaultConfig(), log: new Log(() => undefined), pciSegments: 1, folder: pod, cgroup: undefined },
		nextNumber: () => 2,
		save: () => undefined,
	};
	const half: ShareRecord = { id: "share1", path: "/data", readonly: false, process: null, plugged: false, users: ["c"] };
	const shares = new VolumeShares(host, [half]);
	await shares.release("c", undefined);
	t.same(await lost.ended, [null, "SIGKILL"]);
	t.equal(other.child.exitCode ?? other.child.signalCode, null);
	t.same(shares.record(), []);
	t.same(readdirSync(pod), []);
});
