/** A client of the Kubernetes container runtime interface (CRI v1) over gRPC, with a deadline on each call. */
import { Client, credentials } from "@grpc/grpc-js";
import { readFileSync } from "node:fs";
import protobuf from "protobufjs";
import type {
	ContainerConfig,
	ContainerResources,
	ContainerState,
	ContainerStats,
	ContainerStatus,
	ExecSyncResult,
	PodConfig,
	PodStats,
	PodStatus,
	RuntimeStatus,
	StreamOptions,
} from "./types.ts";

const CALL_TIMEOUT_MS = 120_000;
const PACKAGE = "runtime.v1";
const ROOT = protobuf.parse(readFileSync(new URL("cri.proto", import.meta.url), "utf8"), { keepCase: true }).root;

/** A call that the runtime refused: its gRPC status code and its own words. */
export class CriError extends Error {
	readonly code: number;
	readonly details: string;

	constructor(method: string, code: number, details: string) {
		super(`${method}: status ${code}: ${details}`);
		this.code = code;
		this.details = details;
	}
}

/** How one call is made. */
export type CallOptions = { readonly timeoutMs?: number };

/** One connection to a runtime. Its owner calls `close`. */
export class CriClient {
	readonly #client: Client;

	/** @param socket path of the runtime's gRPC socket */
	constructor(socket: string) {
		this.#client = new Client(`unix:${socket}`, credentials.createInsecure());
	}

	/** Ends the connection. */
	close(): void {
		this.#client.close();
	}

	/** Name and version of the runtime behind the interface. */
	async version(): Promise<{ readonly runtime_name: string; readonly runtime_version: string }> {
		return await this.#call("Version", { version: "v1" });
	}

	/** Whether runtime and network are ready. */
	async status(): Promise<RuntimeStatus> {
		return (await this.#call<{ readonly status: RuntimeStatus }>("Status", {})).status;
	}

	/** Starts a pod under a runtime handler; gives its id. */
	async runPod(config: PodConfig, handler: string, options?: CallOptions): Promise<string> {
		const answer = await this.#call<{ readonly pod_sandbox_id: string }>("RunPodSandbox", { config, runtime_handler: handler }, options);
		return answer.pod_sandbox_id;
	}

	/** Ends a pod's containers and its network; may be called again. */
	async stopPod(podId: string, options?: CallOptions): Promise<void> {
		await this.#call("StopPodSandbox", { pod_sandbox_id: podId }, options);
	}

	/** Removes a pod with everything of it; may be called again. */
	async removePod(podId: string, options?: CallOptions): Promise<void> {
		await this.#call("RemovePodSandbox", { pod_sandbox_id: podId }, options);
	}

	/** The state of a pod. */
	async podStatus(podId: string): Promise<PodStatus> {
		return (await this.#call<{ readonly status: PodStatus }>("PodSandboxStatus", { pod_sandbox_id: podId })).status;
	}

	/** Ids of all pods that the runtime knows. */
	async podIds(): Promise<string[]> {
		return (await this.#call<{ readonly items: readonly { readonly id: string }[] }>("ListPodSandbox", {})).items.map(({ id }) => id);
	}

	/** Makes a container of a pod; gives its id. */
	async createContainer(podId: string, config: ContainerConfig, pod: PodConfig, options?: CallOptions): Promise<string> {
		const request = { pod_sandbox_id: podId, config, sandbox_config: pod };
		return (await this.#call<{ readonly container_id: string }>("CreateContainer", request, options)).container_id;
	}

	/** Starts a container. */
	async startContainer(id: string, options?: CallOptions): Promise<void> {
		await this.#call("StartContainer", { container_id: id }, options);
	}

	/** Stops a container: its stop signal, then, after the grace period in seconds, SIGKILL. */
	async stopContainer(id: string, graceS: number, options?: CallOptions): Promise<void> {
		await this.#call("StopContainer", { container_id: id, timeout: graceS }, options);
	}

	/** Removes a container. */
	async removeContainer(id: string, options?: CallOptions): Promise<void> {
		await this.#call("RemoveContainer", { container_id: id }, options);
	}

	/** The state of a container. */
	async containerStatus(id: string): Promise<ContainerStatus> {
		return (await this.#call<{ readonly status: ContainerStatus }>("ContainerStatus", { container_id: id, verbose: false })).status;
	}

	/** The runtime's own words about a container, such as its PID and its OCI specification. */
	async containerInfo(id: string): Promise<unknown> {
		const { info } = await this.#call<{ readonly info: Readonly<Record<string, string>> }>("ContainerStatus", {
			container_id: id,
			verbose: true,
		});
		return JSON.parse(info["info"] ?? "{}") as unknown;
	}

	/** The containers of a pod (of all pods when left out). */
	async listContainers(podId?: string): Promise<readonly { readonly id: string; readonly state: ContainerState }[]> {
		const filter = podId === undefined ? {} : { filter: { pod_sandbox_id: podId } };
		const answer = await this.#call<{ readonly containers: readonly { readonly id: string; readonly state: ContainerState }[] }>(
			"ListContainers",
			filter,
		);
		return answer.containers;
	}

	/** Changes a running container's limits. */
	async updateContainer(id: string, linux: ContainerResources): Promise<void> {
		await this.#call("UpdateContainerResources", { container_id: id, linux });
	}

	/** Has the runtime open a container's log file anew. */
	async reopenLog(id: string): Promise<void> {
		await this.#call("ReopenContainerLog", { container_id: id });
	}

	/** Runs a command to its end. @param timeoutS the command is killed after this many seconds; 0 for never */
	async execSync(id: string, cmd: readonly string[], timeoutS = 60): Promise<ExecSyncResult> {
		const answer = await this.#call<{ readonly stdout: Buffer; readonly stderr: Buffer; readonly exit_code: number }>("ExecSync", {
			container_id: id,
			cmd,
			timeout: timeoutS,
		});
		return { stdout: answer.stdout.toString("utf8"), stderr: answer.stderr.toString("utf8"), exitCode: answer.exit_code };
	}

	/** Prepares a streamed command; gives the address to connect to. */
	async exec(id: string, cmd: readonly string[], streams: StreamOptions): Promise<string> {
		return (await this.#call<{ readonly url: string }>("Exec", { container_id: id, cmd, ...streams })).url;
	}

	/** Prepares streams to a container's first process; gives the address to connect to. */
	async attach(id: string, streams: StreamOptions): Promise<string> {
		return (await this.#call<{ readonly url: string }>("Attach", { container_id: id, ...streams })).url;
	}

	/** Prepares streams to ports of a pod; gives the address to connect to. */
	async portForward(podId: string, ports: readonly number[]): Promise<string> {
		return (await this.#call<{ readonly url: string }>("PortForward", { pod_sandbox_id: podId, port: ports })).url;
	}

	/** Resource use of a container. */
	async containerStats(id: string): Promise<ContainerStats> {
		return (await this.#call<{ readonly stats: ContainerStats }>("ContainerStats", { container_id: id })).stats;
	}

	/** Resource use of a pod's containers. */
	async listContainerStats(podId: string): Promise<readonly ContainerStats[]> {
		const filter = { filter: { pod_sandbox_id: podId } };
		return (await this.#call<{ readonly stats: readonly ContainerStats[] }>("ListContainerStats", filter)).stats;
	}

	/** Resource use of a pod. */
	async podStats(podId: string): Promise<PodStats> {
		return (await this.#call<{ readonly stats: PodStats }>("PodSandboxStats", { pod_sandbox_id: podId })).stats;
	}

	/** Whether the image is there. */
	async hasImage(name: string): Promise<boolean> {
		const answer = await this.#call<{ readonly image?: { readonly id: string } | null }>("ImageStatus", { image: { image: name } });
		return (answer.image?.id ?? "") !== "";
	}

	async #call<T>(method: string, fields: object, options: CallOptions = {}): Promise<T> {
		const service = ROOT.lookupService(`${PACKAGE}.${method.startsWith("Image") ? "ImageService" : "RuntimeService"}`);
		const { requestType, responseType } = service.methods[method] ?? {};
		if (requestType === undefined || responseType === undefined) throw new Error(`cri.proto has no method ${method}`);
		const request = ROOT.lookupType(`${PACKAGE}.${requestType}`);
		const response = ROOT.lookupType(`${PACKAGE}.${responseType}`);
		return await new Promise<T>((resolve, reject) => {
			this.#client.makeUnaryRequest<object, T>(
				`/${PACKAGE}.${service.name}/${method}`,
				(message) => Buffer.from(request.encode(request.fromObject(message)).finish()),
				(bytes) => response.toObject(response.decode(bytes), { longs: Number, enums: String, defaults: true }) as T,
				fields,
				{ deadline: Date.now() + (options.timeoutMs ?? CALL_TIMEOUT_MS) },
				(error, answer) => {
					if (error !== null) reject(new CriError(method, error.code, error.details));
					else if (answer === undefined) reject(new CriError(method, 0, "no answer"));
					else resolve(answer);
				},
			);
		});
	}
}
