import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import type { Test } from "tap";
import { containerd, runtime } from "../../proto/gen/containerd.js";
import { Log } from "../../shim/base/log.ts";
import { podKey } from "../../shim/base/names.ts";
import { PodNode } from "../../shim/pod/node.ts";
import type { Mover, PodIdentity } from "../../shim/pod/ports.ts";
import { SandboxService } from "../../shim/service/sandbox-service.ts";
import type { Caller } from "../../shim/service/task-service.ts";
import { failing } from "../base/failing.ts";

const api = containerd.runtime.sandbox.v1;
const { NamespaceMode, PodSandboxConfig } = runtime.v1;
const ID = "pod1";
const METHODS = [
	"CreateSandbox",
	"StartSandbox",
	"Platform",
	"StopSandbox",
	"WaitSandbox",
	"SandboxStatus",
	"PingSandbox",
	"ShutdownSandbox",
	"SandboxMetrics",
];
/** Every request of the service has the sandbox's id as its first field. */
const request = (id: string): Uint8Array => api.StartSandboxRequest.encode({ sandbox_id: id }).finish();
const EMPTY_POD = { type_url: "runtime.v1.PodSandboxConfig", value: PodSandboxConfig.encode({}).finish() };

/** A service over a node on which no VM can be made: its guest has no kernel. */
function service(t: Test): {
	call: (method: string, payload?: Uint8Array, replay?: boolean) => Promise<Uint8Array>;
	stateDir: string;
	ends: () => number;
} {
	const stateDir = mkdtempSync("/tmp/sandbox-");
	t.teardown(() => rmSync(stateDir, { recursive: true }));
	const configFile = join(stateDir, "config.toml");
	writeFileSync(configFile, `state_dir = ${JSON.stringify(stateDir)}\n[guest]\nkernel = "/no/such/kernel"\n`);
	const log = new Log(() => undefined, "error");
	const node = new PodNode({ stateDir, defaultConfigFile: configFile, publish: () => undefined, log });
	const key = podKey("/c.sock", "k8s.io", ID);
	let ends = 0;
	const unused = (): never => {
		throw new Error("a pod without containers has no streams");
	};
	const mover: Mover = { pid: process.pid, openStream: unused, stream: unused, lingerOthers: unused, end: () => void ends++ };
	node.attach(key, mover, stateDir, false);
	const identity: PodIdentity = {
		key,
		namespace: "k8s.io",
		podId: ID,
		address: "/c.sock",
		ttrpcAddress: "",
		publishBinary: "",
		configFile: null,
	};
	const sandboxes = new SandboxService(node);
	const call = async (method: string, payload = request(ID), replay = false): Promise<Uint8Array> => {
		const caller: Caller = { identity, mover, replay, timeoutMs: undefined };
		return await sandboxes.call(method, payload, caller);
	};
	return { call, stateDir, ends: () => ends };
}

function creation(changes: containerd.runtime.sandbox.v1.CreateSandboxRequest.$Properties = {}): Uint8Array {
	return api.CreateSandboxRequest.encode({ sandbox_id: ID, bundle_path: "/no/bundle", options: EMPTY_POD, ...changes }).finish();
}

t.test("a call for another sandbox, an unknown method and a damaged request are refused by name", async (t) => {
	const { call } = service(t);
	for (const method of METHODS)
		await t.rejects(
			call(method, request("other")),
			failing({ reason: "call.invalid", message: /serves sandbox pod1, not "other"/ }),
			method,
		);
	await t.rejects(call("UpdateSandbox"), failing({ reason: "call.unimplemented", message: /UpdateSandbox/ }));
	for (const method of METHODS)
		await t.rejects(call(method, Uint8Array.of(0x0a, 0xff)), failing({ reason: "call.invalid", message: /can't be decoded/ }), method);
});

t.test("a sandbox that does not exist has ended: nothing keeps containerd from removing its pod", async (t) => {
	const { call, ends } = service(t);
	for (const method of ["StartSandbox", "PingSandbox", "SandboxMetrics"])
		await t.rejects(call(method), failing({ reason: "pod.not-found", code: "not-found", message: /sandbox pod1 does not exist/ }), method);
	const status = api.SandboxStatusResponse.decode(await call("SandboxStatus"));
	t.strictSame([status.sandbox_id, status.state, status.pid], [ID, "SANDBOX_NOTREADY", 0]);
	t.equal(api.WaitSandboxResponse.decode(await call("WaitSandbox")).exit_status, 137);
	const { platform } = api.PlatformResponse.decode(await call("Platform"));
	t.strictSame([platform?.os, platform?.architecture], ["linux", "amd64"]);
	await call("StopSandbox");
	t.equal(ends(), 0);
	await call("ShutdownSandbox");
	t.equal(ends(), 1, "nobody needs the keeper any more");
});

t.test("a creation that can't be served says why, and leaves nothing", async (t) => {
	const { call, stateDir, ends } = service(t);
	const refused = async (changes: Parameters<typeof creation>[0], wanted: Error): Promise<void> => {
		await t.rejects(call("CreateSandbox", creation(changes)), wanted);
	};
	const asks = (namespaces: runtime.v1.NamespaceOption.$Properties) => ({
		options: {
			...EMPTY_POD,
			value: PodSandboxConfig.encode({ linux: { security_context: { namespace_options: namespaces } } }).finish(),
		},
	});
	await refused({ netns_path: "run/netns/x" }, failing({ reason: "call.invalid", message: /netns_path is "run\/netns\/x"/ }));
	await refused({ bundle_path: "" }, failing({ reason: "call.invalid", message: /bundle_path/ }));
	await refused({ rootfs: [{ type: "overlay" }] }, failing({ reason: "call.invalid", message: /rootfs/ }));
	await refused({ options: null }, failing({ reason: "spec.invalid", message: /\/no\/bundle\/config.json/ }));
	await refused({ options: { type_url: "x.Y" } }, failing({ reason: "call.invalid", message: /a x\.Y/ }));
	await refused(asks({ network: NamespaceMode.NODE }), failing({ reason: "network.unsupported", message: /hostNetwork/ }));
	await refused(asks({ pid: NamespaceMode.NODE }), failing({ reason: "spec.unsupported", message: /host PID namespace/ }));
	await refused({}, failing({ reason: "guest.file-missing", message: /\/no\/such\/kernel/ }));
	await t.rejects(call("CreateSandbox", creation(), true), failing({ reason: "guest.file-missing" }), "a replay is a first attempt then");
	await t.rejects(call("StartSandbox"), failing({ reason: "pod.not-found" }));
	t.strictSame(readdirSync(stateDir), ["config.toml"]);
	await call("ShutdownSandbox");
	t.equal(ends(), 1);
});
