/** Containers that are deleted, or whose pod is removed, before their making has begun. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { deferred } from "../../shim/base/deadline.ts";
import { Log } from "../../shim/base/log.ts";
import { defaultConfig } from "../../shim/config/schema.ts";
import { LeavingNetworks } from "../../shim/pod/leaving-networks.ts";
import { Pod } from "../../shim/pod/pod.ts";
import type { CreateRequest } from "../../shim/pod/ports.ts";
import { failing } from "../base/failing.ts";

/** A pod without a VM that does nothing else until `go` is called; `request` asks for a container whose bundle is not there. */
function busyPod(t: Test) {
	const folder = mkdtempSync(join(tmpdir(), "snp-"));
	t.teardown(() => rmSync(folder, { recursive: true, force: true }));
	const identity = {
		key: "0".repeat(32),
		namespace: "default",
		podId: "pod",
		address: "",
		ttrpcAddress: "",
		publishBinary: "",
		configFile: null,
	};
	const pod = new Pod(identity, join(folder, "pod"), defaultConfig(), {
		publish: () => undefined,
		images: () => {
			throw new Error("no image is made");
		},
		abandoned: () => undefined,
		leavingNetworks: new LeavingNetworks(),
		lookAfter: () => () => undefined,
		log: new Log(() => undefined),
	});
	const { promise, resolve: go } = deferred<undefined>();
	void pod.exclusive(() => promise);
	const request = (id: string): CreateRequest => ({
		id,
		bundle: join(folder, "no-bundle"),
		rootfs: [],
		stdio: { stdin: "", stdout: "", stderr: "", terminal: false },
	});
	return { pod, request, go: () => go(undefined) };
}

t.test("a container that is deleted while it waits to be made is not made", async (t) => {
	const { pod, request, go } = busyPod(t);
	const waits = pod.create(request("waits"), false);
	const other = pod.create(request("other"), false);
	t.ok(pod.knows("waits"));
	const deleted = pod.delete("waits", "", false);
	go();
	await t.rejects(waits, failing({ reason: "wait.canceled", message: /waits is being deleted/ }));
	await t.rejects(deleted, failing({ reason: "container.not-found" }));
	await t.rejects(other, failing({ reason: "spec.invalid" }), "others are");
	t.notOk(pod.knows("waits"));
});

t.test("so is one that containerd gives up, and all whose pod is removed", async (t) => {
	const { pod, request, go } = busyPod(t);
	const givenUp = pod.create(request("given-up"), false);
	const removed = pod.create(request("removed"), false);
	const done = [pod.discard("given-up"), pod.destroy()];
	go();
	await t.rejects(givenUp, failing({ reason: "wait.canceled", message: /given-up is being removed/ }));
	await t.rejects(removed, failing({ reason: "wait.canceled", message: /pod is being removed/ }));
	await Promise.all(done);
	t.equal(pod.state.kind, "gone");
});

t.test("what nobody makes can't be deleted", async (t) => {
	const { pod, go } = busyPod(t);
	await t.rejects(pod.delete("unknown", "", false), failing({ reason: "container.not-found" }), "at once");
	t.equal(await pod.discard("unknown"), undefined);
	go();
});
