import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { Log } from "../../shim/base/log.ts";
import { keeperSocket, podKey } from "../../shim/base/names.ts";
import { PodNode } from "../../shim/pod/node.ts";
import type { Mover } from "../../shim/pod/ports.ts";

const ADDRESS = "/run/containerd.sock";

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
