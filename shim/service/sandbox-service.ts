/**
 * containerd's Sandbox service, version 1 (containerd 2.x, `sandboxer = "shim"`): each call is decoded, handed to the pod, and its answer
 * encoded. No logic of its own.
 */

import { isAbsolute } from "node:path";

import { containerd } from "../../proto/gen/containerd.js";
import { readSpec } from "../agent/oci-spec.ts";
import { withDeadline } from "../base/deadline.ts";
import { ShimError } from "../base/errors.ts";
import { RUNTIME_NAME } from "../base/names.ts";
import type { PodNode } from "../pod/node.ts";
import { podSpec } from "../pod/pod-config.ts";
import type { Pod } from "../pod/pod.ts";
import type { SandboxRequest } from "../pod/sandbox-api.ts";
import { decode } from "./decode.ts";
import { timestamp } from "./encode.ts";
import { encodeMetrics, METRICS_TYPE_URL } from "./metrics.ts";
import { podOptions } from "./sandbox-options.ts";
import type { Caller } from "./task-service.ts";

const api = containerd.runtime.sandbox.v1;

/** The name under which the service is called. */
export const SANDBOX_SERVICE = "containerd.runtime.sandbox.v1.Sandbox";

type Method = (payload: Uint8Array, caller: Caller) => Promise<Uint8Array>;

const EMPTY = new Uint8Array(0);
/** The states that containerd's CRI plugin knows (CRI, `runtime.v1.PodSandboxState`). */
const READY = "SANDBOX_READY";
const NOT_READY = "SANDBOX_NOTREADY";
/** How a sandbox ended of which nothing is known any more. */
const KILLED = 137;
const MS_PER_SECOND = 1000;

/** Implements the nine calls over a node's pods. */
export class SandboxService {
	readonly #node: PodNode;
	readonly #methods: ReadonlyMap<string, Method>;

	constructor(node: PodNode) {
		this.#node = node;
		this.#methods = new Map<string, Method>([
			["CreateSandbox", (payload, caller) => this.#create(decode(api.CreateSandboxRequest, payload), caller)],
			["StartSandbox", (payload, caller) => this.#start(decode(api.StartSandboxRequest, payload), caller)],
			["Platform", (payload, caller) => this.#platform(decode(api.PlatformRequest, payload), caller)],
			["StopSandbox", (payload, caller) => this.#stop(decode(api.StopSandboxRequest, payload), caller)],
			["WaitSandbox", (payload, caller) => this.#wait(decode(api.WaitSandboxRequest, payload), caller)],
			["SandboxStatus", (payload, caller) => this.#status(decode(api.SandboxStatusRequest, payload), caller)],
			["PingSandbox", (payload, caller) => this.#ping(decode(api.PingRequest, payload), caller)],
			["ShutdownSandbox", (payload, caller) => this.#shutdown(decode(api.ShutdownSandboxRequest, payload), caller)],
			["SandboxMetrics", (payload, caller) => this.#metrics(decode(api.SandboxMetricsRequest, payload), caller)],
		]);
	}

	/**
	 * Runs one call.
	 * @throws ShimError `call.unimplemented` for a method that is not the service's
	 */
	call(method: string, payload: Uint8Array, caller: Caller): Promise<Uint8Array> {
		const run = this.#methods.get(method);
		if (run === undefined) throw new ShimError("call.unimplemented", `the sandbox service has no method ${method}`);
		return run(payload, caller).catch((error: unknown) => {
			throw this.#node.marked(caller.identity.key, error);
		});
	}

	/** The caller's pod, if it is a sandbox. A shim serves one: a call for another has lost its way. */
	#find(id: string, { identity }: Caller): Pod | undefined {
		if (id !== identity.podId) throw new ShimError("call.invalid", `this shim serves sandbox ${identity.podId}, not ${JSON.stringify(id)}`);
		const pod = this.#node.find(identity.key);
		return pod?.standsAlone === true ? pod : undefined;
	}

	#pod(id: string, caller: Caller): Pod {
		const pod = this.#find(id, caller);
		if (pod === undefined) throw new ShimError("pod.not-found", `sandbox ${id} does not exist`);
		return pod;
	}

	async #create(request: containerd.runtime.sandbox.v1.CreateSandboxRequest, caller: Caller): Promise<Uint8Array> {
		this.#find(request.sandbox_id, caller);
		const wanted = await sandboxRequest(request);
		const pod = await this.#node.obtain(caller.identity, caller.mover);
		await pod.api.create(wanted, caller.replay);
		return EMPTY;
	}

	async #start(request: containerd.runtime.sandbox.v1.StartSandboxRequest, caller: Caller): Promise<Uint8Array> {
		const { pid, createdAtMs } = await this.#pod(request.sandbox_id, caller).api.start(caller.replay);
		return api.StartSandboxResponse.encode({ pid, created_at: timestamp(createdAtMs) }).finish();
	}

	/** What the guest is, whatever became of it. */
	async #platform(request: containerd.runtime.sandbox.v1.PlatformRequest, caller: Caller): Promise<Uint8Array> {
		this.#find(request.sandbox_id, caller);
		return api.PlatformResponse.encode({ platform: { os: "linux", architecture: "amd64" } }).finish();
	}

	async #stop(request: containerd.runtime.sandbox.v1.StopSandboxRequest, caller: Caller): Promise<Uint8Array> {
		await this.#find(request.sandbox_id, caller)?.api.stop(request.timeout_secs * MS_PER_SECOND);
		return EMPTY;
	}

	async #wait(request: containerd.runtime.sandbox.v1.WaitSandboxRequest, caller: Caller): Promise<Uint8Array> {
		const exited = this.#find(request.sandbox_id, caller)?.api.exited ?? { status: KILLED, atMs: Date.now() };
		const { timeoutMs } = caller;
		const what = `the end of sandbox ${request.sandbox_id}`;
		const exit = await (timeoutMs === undefined ? exited : withDeadline({ what, timeoutMs }, async () => await exited));
		return api.WaitSandboxResponse.encode({ exit_status: exit.status, exited_at: timestamp(exit.atMs) }).finish();
	}

	/** A sandbox of which nothing is known has ended: an error would keep its pod from being removed. */
	async #status(request: containerd.runtime.sandbox.v1.SandboxStatusRequest, caller: Caller): Promise<Uint8Array> {
		const sandbox_id = request.sandbox_id;
		const pod = this.#find(sandbox_id, caller);
		if (pod === undefined)
			return api.SandboxStatusResponse.encode({ sandbox_id, state: NOT_READY, exited_at: timestamp(Date.now()) }).finish();
		const { ready, pid, createdAtMs, exit } = pod.api.status();
		return api.SandboxStatusResponse.encode({
			sandbox_id,
			pid,
			state: ready ? READY : NOT_READY,
			created_at: timestamp(createdAtMs),
			...(exit === undefined ? {} : { exited_at: timestamp(exit.atMs) }),
			...(request.verbose ? { info: { info: JSON.stringify(details(pod)) } } : {}),
		}).finish();
	}

	async #ping(request: containerd.runtime.sandbox.v1.PingRequest, caller: Caller): Promise<Uint8Array> {
		await this.#pod(request.sandbox_id, caller).api.ping();
		return EMPTY;
	}

	async #shutdown(request: containerd.runtime.sandbox.v1.ShutdownSandboxRequest, caller: Caller): Promise<Uint8Array> {
		this.#find(request.sandbox_id, caller);
		const pod = this.#node.find(caller.identity.key);
		if (pod === undefined) caller.mover.end();
		else await this.#node.remove(pod);
		return EMPTY;
	}

	async #metrics(request: containerd.runtime.sandbox.v1.SandboxMetricsRequest, caller: Caller): Promise<Uint8Array> {
		const value = encodeMetrics(this.#pod(request.sandbox_id, caller).api.stats());
		const metrics = { id: request.sandbox_id, timestamp: timestamp(Date.now()), data: { type_url: METRICS_TYPE_URL, value } };
		return api.SandboxMetricsResponse.encode({ metrics }).finish();
	}
}

/** What `crictl inspectp` shows. */
function details(pod: Pod): Record<string, unknown> {
	return {
		pid: pod.api.status().pid,
		runtimeType: RUNTIME_NAME,
		vmState: pod.state.kind,
		...(pod.sandbox.size === undefined ? {} : { vm: pod.sandbox.size.now }),
	};
}

/** The pod of the options; without options, that of the specification that containerd's client has put into the bundle. */
async function sandboxRequest(request: containerd.runtime.sandbox.v1.CreateSandboxRequest): Promise<SandboxRequest> {
	const { sandbox_id: id, bundle_path: bundle, netns_path: netns } = request;
	for (const [field, path] of Object.entries({ bundle_path: bundle, netns_path: netns === "" ? "/" : netns }))
		if (!isAbsolute(path)) throw new ShimError("call.invalid", `sandbox ${id}: ${field} is ${JSON.stringify(path)}, not an absolute path`);
	if (request.rootfs.length > 0) throw new ShimError("call.invalid", `sandbox ${id}: rootfs is given, but a VM is made of no image`);
	const config = podOptions(id, request.options);
	if (config === undefined) return { bundle, spec: await readSpec(bundle), dns: undefined };
	const annotations = { ...config.annotations, ...request.annotations };
	return { bundle, spec: podSpec(id, { ...config, annotations }, netns), dns: config.dns };
}
