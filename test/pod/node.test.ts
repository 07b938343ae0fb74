import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { Log } from "../../shim/base/log.ts";
import { keeperSocket, podKey } from "../../shim/base/names.ts";
import { cgroupsApart, HostCgroup, parseHierarchies } from "../../shim/host/cgroups.ts";
import { startTimeOf } from "../../shim/host/processes.ts";
import { Journal } from "../../shim/pod/journal.ts";
import type { PodRecord } from "../../shim/pod/journal.ts";
import { PodNode } from "../../shim/pod/node.ts";
import type { Mover } from "../../shim/pod/ports.ts";
import { API_SOCKET_OPTION } from "../../shim/vmm/launcher.ts";
import { eventually } from "../support/retry.ts";

const ADDRESS = "/run/containerd.sock";
const WAIT_MS = 20_000;

/** A node in a folder whose path is short enough for sockets. */
function node(t: Test): { node: PodNode; stateDir: string } {
	const stateDir = mkdtempSync("/tmp/node-");
	t.teardown(() => rmSync(stateDir, { recursive: true }));
	const log = new Log(() => undefined, "error");
	return { node: new PodNode({ stateDir, defaultConfigFile: join(stateDir, "config.toml"), publish: () => undefined, log }), stateDir };
}

/** A connected keeper that counts how often it was told to end. */
function keeper(): Mover & { ends: number } {
	const unused = (): never => {
		throw new Error("a keeper without a pod has no streams");
	};
	return {
		ends: 0,
		pid: 1,
		openStream: unused,
		stream: unused,
		lingerOthers: unused,
		end() {
			this.ends++;
		},
	};
}

t.test("a keeper that lives but has not connected yet is waited for, and ended", async (t) => {
	const { node: pods, stateDir } = node(t);
	const key = podKey(ADDRESS, "k8s.io", "uncalled");
	const socket = keeperSocket(stateDir, key);
	mkdirSync(dirname(socket));
	const server = createServer().listen(socket);
	await once(server, "listening");
	t.teardown(() => server.close());
	const probed = once(server, "connection");
	const discarded = pods.discard(ADDRESS, "k8s.io", "uncalled");
	await probed;
	const late = keeper();
	pods.attach(key, late, stateDir, false);
	t.equal(await discarded, undefined);
	t.equal(late.ends, 1);
});

t.test("a connected keeper without a pod is ended at once", async (t) => {
	const { node: pods, stateDir } = node(t);
	const early = keeper();
	pods.attach(podKey(ADDRESS, "k8s.io", "uncalled"), early, stateDir, false);
	await pods.discard(ADDRESS, "k8s.io", "other");
	t.equal(early.ends, 0);
	await pods.discard(ADDRESS, "k8s.io", "uncalled");
	t.equal(early.ends, 1);
});

t.test("nobody waits for a keeper that has left its socket's file", async (t) => {
	const { node: pods, stateDir } = node(t);
	const socket = keeperSocket(stateDir, podKey(ADDRESS, "k8s.io", "uncalled"));
	mkdirSync(dirname(socket));
	writeFileSync(socket, "");
	t.equal(await pods.discard(ADDRESS, "k8s.io", "uncalled"), undefined);
});

t.test("the keeper of a pod that could not be taken up is ended, and a new one of its name is not", async (t) => {
	const { node: pods, stateDir } = node(t);
	const key = podKey(ADDRESS, "k8s.io", "damaged");
	mkdirSync(join(stateDir, "p", key), { recursive: true });
	writeFileSync(join(stateDir, "p", key, "journal.json"), "no journal");
	writeFileSync(join(stateDir, "config.toml"), `[storage]\ncache_dir = ${JSON.stringify(join(stateDir, "images"))}\n`);
	await pods.recover();
	const old = keeper();
	pods.attach(key, old, stateDir, true);
	t.equal(old.ends, 1);
	const fresh = keeper();
	pods.attach(key, fresh, stateDir, false);
	t.equal(fresh.ends, 0);
});

/** A journal of a sandbox whose VM has ended, and whose keeper had this number and started then. */
function leaveSandbox(
	stateDir: string,
	name: string,
	keeperPid: number,
	keeperStartTime: string | null,
	changes: Partial<PodRecord> = {},
): string {
	const key = podKey(ADDRESS, "k8s.io", name);
	const journal = new Journal(join(stateDir, "p", key));
	journal.open();
	journal.write({
		version: 1,
		identity: { key, namespace: "k8s.io", podId: name, address: ADDRESS, ttrpcAddress: "", publishBinary: "/none", configFile: null },
		config: { storage: { cache_dir: join(stateDir, "images") } },
		keeperPid,
		keeperStartTime,
		sandbox: { bundle: stateDir, createdAtMs: 1, started: true, exit: null, sysctls: {} },
		state: "running",
		network: null,
		vmm: null,
		size: null,
		scratch: null,
		pciSegments: 1,
		cgroup: null,
		poolCgroup: null,
		agent: null,
		volumes: [],
		disks: [],
		shares: [],
		emptyDirs: [],
		nextNumber: 1,
		containers: [],
		tombstones: [],
		spans: [],
		...changes,
	});
	return join(stateDir, "p", key);
}

t.test("a pod whose keeper has ended is removed, also when another process has got the keeper's number", async (t) => {
	const { node: pods, stateDir } = node(t);
	writeFileSync(join(stateDir, "config.toml"), `[storage]\ncache_dir = ${JSON.stringify(join(stateDir, "images"))}\n`);
	const since = startTimeOf(process.pid) ?? 0n;
	leaveSandbox(stateDir, "lives", process.pid, String(since));
	const reused = leaveSandbox(stateDir, "reused", process.pid, String(since - 1n));
	await pods.recover();
	await eventually("the removal", WAIT_MS, () => (existsSync(reused) ? undefined : true));
	t.same(
		pods.list().map(({ podId }) => podId),
		["lives"],
	);
});

t.test("a damaged journal leaves neither the VMM nor its control group", async (t) => {
	const { node: pods, stateDir } = node(t);
	const folder = join(stateDir, "p", podKey(ADDRESS, "k8s.io", "damaged"));
	mkdirSync(folder, { recursive: true });
	writeFileSync(join(folder, "journal.json"), "");
	writeFileSync(join(stateDir, "config.toml"), `[storage]\ncache_dir = ${JSON.stringify(join(stateDir, "images"))}\n`);
	const vmm = spawn("sh", ["-c", "read word", API_SOCKET_OPTION], { cwd: folder, stdio: ["pipe", "ignore", "ignore"] });
	const ended = once(vmm, "exit");
	const group = new HostCgroup(`/snp-test-${randomBytes(4).toString("hex")}`);
	t.teardown(async () => {
		vmm.kill("SIGKILL");
		await ended;
		await group.remove();
	});
	await group.join(vmm.pid ?? 0);
	t.same(cgroupsApart(vmm.pid ?? 0), [group.path]);
	await pods.recover();
	await ended;
	t.notOk(existsSync(folder));
	const places = parseHierarchies(readFileSync("/proc/self/mountinfo", "utf8")).map(({ mountPoint }) => join(mountPoint, group.path));
	t.same(places.filter(existsSync), []);
});

t.test(
	"what was left of a pod whose end was told goes without bringing the pod back; its keeper waits for containerd's Shutdown",
	async (t) => {
		const { node: pods, stateDir } = node(t);
		writeFileSync(join(stateDir, "config.toml"), `[storage]\ncache_dir = ${JSON.stringify(join(stateDir, "images"))}\n`);
		const group = new HostCgroup(`/snp-test-${randomBytes(4).toString("hex")}`);
		const last = spawn("sleep", ["1000"]);
		const ended = once(last, "exit");
		t.teardown(async () => {
			last.kill("SIGKILL");
			await ended;
			await group.remove();
		});
		await group.join(last.pid ?? 0);
		const folder = leaveSandbox(stateDir, "told", process.pid, null, { state: "gone", cgroup: group.path, sandbox: null });
		const recovered = pods.recover();
		last.kill("SIGKILL");
		await recovered;
		t.same(pods.list(), []);
		t.notOk(existsSync(folder));
		t.ok(group.removeEmpty());
		const waiting = keeper();
		pods.attach(podKey(ADDRESS, "k8s.io", "told"), waiting, stateDir, true);
		t.equal(waiting.ends, 0);
	},
);
