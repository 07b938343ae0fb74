/** Calls of containerd's Sandbox service made straight at the shim of one pod: those that containerd's clients have no way to. */
import { once } from "node:events";
import { connect } from "node:net";
import { join } from "node:path";
import { containerd, io } from "../../proto/gen/containerd.js";
import { Log } from "../../shim/base/log.ts";
import { TtrpcClient } from "../../shim/wire/client.ts";
import type { PrivateContainerd } from "./containerd.ts";

const api = containerd.runtime.sandbox.v1;
const SERVICE = "containerd.runtime.sandbox.v1.Sandbox";
const CALL_TIMEOUT_MS = 60_000;

/** One connection to the shim of a pod. Its owner calls `close`. */
export class SandboxShim {
	readonly podId: string;
	readonly #client: TtrpcClient;

	private constructor(podId: string, client: TtrpcClient) {
		this.podId = podId;
		this.#client = client;
	}

	static async open(cd: PrivateContainerd, podId: string): Promise<SandboxShim> {
		const socket = connect(cd.seen(join(cd.stateDir, "k", `${cd.podKey(podId)}.sock`)));
		await once(socket, "connect");
		return new SandboxShim(podId, new TtrpcClient(socket, { name: `the shim of ${podId}`, log: new Log(() => undefined, "error") }));
	}

	close(): void {
		this.#client.close();
	}

	/** A call whose only field is the sandbox's id; gives the answer's bytes. @throws RemoteError with the shim's words */
	async call(method: string, id = this.podId): Promise<Uint8Array> {
		const request = api.StartSandboxRequest.encode({ sandbox_id: id }).finish();
		return await this.#client.call(SERVICE, method, request, { timeoutMs: CALL_TIMEOUT_MS });
	}

	/** @param graceS how long containers may take to end by themselves */
	async stop(graceS = 0): Promise<void> {
		const request = api.StopSandboxRequest.encode({ sandbox_id: this.podId, timeout_secs: graceS }).finish();
		await this.#client.call(SERVICE, "StopSandbox", request, { timeoutMs: CALL_TIMEOUT_MS });
	}

	/** A further CreateSandbox for the same pod. */
	async create(): Promise<void> {
		const request = api.CreateSandboxRequest.encode({
			sandbox_id: this.podId,
			bundle_path: "/",
			options: { type_url: "runtime.v1.PodSandboxConfig", value: new Uint8Array(0) },
		});
		await this.#client.call(SERVICE, "CreateSandbox", request.finish(), { timeoutMs: CALL_TIMEOUT_MS });
	}

	/** The whole status, with its details. */
	async status(): Promise<containerd.runtime.sandbox.v1.SandboxStatusResponse> {
		const request = api.SandboxStatusRequest.encode({ sandbox_id: this.podId, verbose: true }).finish();
		return api.SandboxStatusResponse.decode(await this.#client.call(SERVICE, "SandboxStatus", request, { timeoutMs: CALL_TIMEOUT_MS }));
	}

	/** What the VM uses (cgroup version 2's metrics). */
	async metrics(): Promise<{ readonly cpuMicros: number; readonly memoryBytes: number; readonly processes: number }> {
		const { metrics } = api.SandboxMetricsResponse.decode(await this.call("SandboxMetrics"));
		const found = io.containerd.cgroups.v2.Metrics.decode(metrics?.data?.value ?? new Uint8Array(0));
		return {
			cpuMicros: Number(found.cpu?.usage_usec ?? 0),
			memoryBytes: Number(found.memory?.usage ?? 0),
			processes: Number(found.pids?.current ?? 0),
		};
	}

	/** How the sandbox ended; waits for it. */
	async wait(): Promise<number> {
		return api.WaitSandboxResponse.decode(await this.call("WaitSandbox")).exit_status;
	}
}
