/** The few calls of containerd's own gRPC API that `ctr` does not have, or that the bench times without a program's start-up in between. */
import { Client, credentials, Metadata } from "@grpc/grpc-js";
import protobuf from "protobufjs";

const CALL_TIMEOUT_MS = 120_000;

/** Field numbers of containerd's `api/services/tasks/v1/tasks.proto`, `api/services/snapshots/v1/snapshots.proto` and `api/types/mount.proto`. */
const MESSAGES = protobuf.Root.fromJSON({
	nested: {
		Mount: {
			fields: {
				type: { type: "string", id: 1 },
				source: { type: "string", id: 2 },
				target: { type: "string", id: 3 },
				options: { rule: "repeated", type: "string", id: 4 },
			},
		},
		MountsRequest: { fields: { snapshotter: { type: "string", id: 1 }, key: { type: "string", id: 2 } } },
		MountsResponse: { fields: { mounts: { rule: "repeated", type: "Mount", id: 1 } } },
		CreateTaskRequest: { fields: { containerId: { type: "string", id: 1 }, rootfs: { rule: "repeated", type: "Mount", id: 3 } } },
		CreateTaskResponse: { fields: { containerId: { type: "string", id: 1 }, pid: { type: "uint32", id: 2 } } },
		StartRequest: { fields: { containerId: { type: "string", id: 1 } } },
		StartResponse: { fields: { pid: { type: "uint32", id: 1 } } },
		KillRequest: {
			fields: { containerId: { type: "string", id: 1 }, execId: { type: "string", id: 2 }, signal: { type: "uint32", id: 3 } },
		},
		WaitRequest: { fields: { containerId: { type: "string", id: 1 } } },
		WaitResponse: { fields: { exitStatus: { type: "uint32", id: 1 } } },
		DeleteTaskRequest: { fields: { containerId: { type: "string", id: 1 } } },
		DeleteResponse: { fields: { id: { type: "string", id: 1 } } },
		Any: { fields: { typeUrl: { type: "string", id: 1 }, value: { type: "bytes", id: 2 } } },
		UpdateTaskRequest: { fields: { containerId: { type: "string", id: 1 }, resources: { type: "Any", id: 2 } } },
		Empty: { fields: {} },
	},
});

const TASKS = "/containerd.services.tasks.v1.Tasks";
const SNAPSHOTS = "/containerd.services.snapshots.v1.Snapshots";
const SIGKILL = 9;
/** How containerd's clients name the OCI specification's `linux.resources`. */
const RESOURCES_TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/** A mount as containerd's snapshotters give it. */
export type SnapshotMount = { readonly type: string; readonly source: string; readonly options: readonly string[] };

/** A connection to one containerd and one of its namespaces. Its owner calls `close`. */
export class ContainerdApi {
	readonly #client: Client;
	readonly #namespace: string;

	/** @param socket path of containerd's gRPC socket */
	constructor(socket: string, namespace: string) {
		this.#client = new Client(`unix:${socket}`, credentials.createInsecure());
		this.#namespace = namespace;
	}

	/** The mounts of a snapshot. */
	async mounts(key: string, snapshotter: string): Promise<SnapshotMount[]> {
		const { mounts } = await this.#call(`${SNAPSHOTS}/Mounts`, "MountsRequest", "MountsResponse", { snapshotter, key });
		return mounts as SnapshotMount[];
	}

	/** Creates the task of a container that exists, on its snapshot, without stdio. */
	async createTask(containerId: string, snapshotter: string): Promise<void> {
		const mounts = await this.mounts(containerId, snapshotter);
		await this.#call(`${TASKS}/Create`, "CreateTaskRequest", "CreateTaskResponse", { containerId, rootfs: mounts });
	}

	async startTask(containerId: string): Promise<void> {
		await this.#call(`${TASKS}/Start`, "StartRequest", "StartResponse", { containerId });
	}

	/** Kills the task, waits for its end and deletes it. */
	async removeTask(containerId: string): Promise<void> {
		await this.#call(`${TASKS}/Kill`, "KillRequest", "Empty", { containerId, signal: SIGKILL });
		await this.#call(`${TASKS}/Wait`, "WaitRequest", "WaitResponse", { containerId });
		await this.#call(`${TASKS}/Delete`, "DeleteTaskRequest", "DeleteResponse", { containerId });
	}

	/** Changes a task's limits: `linux.resources` of the OCI specification. @throws Error with containerd's text */
	async updateTask(containerId: string, resources: Record<string, unknown>): Promise<void> {
		const value = Buffer.from(JSON.stringify(resources));
		await this.#call(`${TASKS}/Update`, "UpdateTaskRequest", "Empty", { containerId, resources: { typeUrl: RESOURCES_TYPE_URL, value } });
	}

	close(): void {
		this.#client.close();
	}

	async #call(path: string, request: string, response: string, fields: Record<string, unknown>): Promise<Record<string, unknown>> {
		const requestType = MESSAGES.lookupType(request);
		const responseType = MESSAGES.lookupType(response);
		const metadata = new Metadata();
		metadata.set("containerd-namespace", this.#namespace);
		return await new Promise((resolve, reject) => {
			this.#client.makeUnaryRequest(
				path,
				(message: Record<string, unknown>) => Buffer.from(requestType.encode(requestType.fromObject(message)).finish()),
				(bytes: Buffer) => responseType.toObject(responseType.decode(bytes)),
				fields,
				metadata,
				{ deadline: Date.now() + CALL_TIMEOUT_MS },
				(error, answer) => {
					if (error !== null)
						reject(new Error(`${path} of ${String(fields["containerId"] ?? fields["key"])}: ${error.details}`, { cause: error }));
					else resolve(answer ?? {});
				},
			);
		});
	}
}
