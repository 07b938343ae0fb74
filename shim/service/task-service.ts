/**
 * containerd's Task service, versions 2 and 3 (the messages are the same): each call is decoded, handed to the pod, and its answer encoded.
 * No logic of its own.
 */

import { containerd } from "../../proto/gen/containerd.js";
import { parseJson, parseSpec, processSchema, resourcesSchema } from "../agent/oci-spec.ts";
import { withDeadline } from "../base/deadline.ts";
import { ShimError } from "../base/errors.ts";
import type { PodNode } from "../pod/node.ts";
import type { Pod } from "../pod/pod.ts";
import type { Mover, PodIdentity, RootfsMount } from "../pod/ports.ts";
import type { GuestProcess } from "../pod/process.ts";
import { decode } from "./decode.ts";
import { timestamp } from "./encode.ts";
import { encodeMetrics, METRICS_TYPE_URL } from "./metrics.ts";
import { optionsConfigFile } from "./runtime-options.ts";

const task = containerd.task.v2;
const { Status } = containerd.v1.types;

/** The names under which the service is called. */
export const TASK_SERVICES: ReadonlySet<string> = new Set(["containerd.task.v2.Task", "containerd.task.v3.Task"]);

/** Who calls: the keeper behind the connection, and its pod's identity. */
export interface Caller {
	readonly identity: PodIdentity;
	readonly mover: Mover;
	/** The call may have had its effect with an earlier snpd. */
	readonly replay: boolean;
	/** How long the caller waits for the answer, if it said so. */
	readonly timeoutMs: number | undefined;
}

type Method = (payload: Uint8Array, caller: Caller) => Promise<Uint8Array>;

const EMPTY = new Uint8Array(0);

/** Implements the seventeen calls over a node's pods. */
export class TaskService {
	readonly #node: PodNode;
	readonly #version: string;
	readonly #methods: ReadonlyMap<string, Method>;

	/** @param version what Connect tells containerd */
	constructor(node: PodNode, version: string) {
		this.#node = node;
		this.#version = version;
		this.#methods = new Map<string, Method>([
			["Create", (payload, caller) => this.#create(decode(task.CreateTaskRequest, payload), caller)],
			["Start", (payload, caller) => this.#start(decode(task.StartRequest, payload), caller)],
			["Delete", (payload, caller) => this.#delete(decode(task.DeleteRequest, payload), caller)],
			["State", (payload, caller) => this.#state(decode(task.StateRequest, payload), caller)],
			["Pids", (payload, caller) => this.#pids(decode(task.PidsRequest, payload), caller)],
			["Pause", (payload, caller) => this.#pause(decode(task.PauseRequest, payload), caller)],
			["Resume", (payload, caller) => this.#resume(decode(task.ResumeRequest, payload), caller)],
			["Kill", (payload, caller) => this.#kill(decode(task.KillRequest, payload), caller)],
			["Exec", (payload, caller) => this.#exec(decode(task.ExecProcessRequest, payload), caller)],
			["ResizePty", (payload, caller) => this.#resizePty(decode(task.ResizePtyRequest, payload), caller)],
			["CloseIO", (payload, caller) => this.#closeIo(decode(task.CloseIORequest, payload), caller)],
			["Update", (payload, caller) => this.#update(decode(task.UpdateTaskRequest, payload), caller)],
			["Wait", (payload, caller) => this.#wait(decode(task.WaitRequest, payload), caller)],
			["Stats", (payload, caller) => this.#stats(decode(task.StatsRequest, payload), caller)],
			["Connect", (payload, caller) => this.#connect(decode(task.ConnectRequest, payload), caller)],
			["Shutdown", (payload, caller) => this.#shutdown(decode(task.ShutdownRequest, payload), caller)],
			["Checkpoint", () => Promise.reject(new ShimError("call.unimplemented", "Checkpoint: a confidential VM's memory can't be saved"))],
		]);
	}

	/**
	 * Runs one call.
	 * @throws ShimError `call.unimplemented` for a method that is not the service's
	 */
	call(method: string, payload: Uint8Array, caller: Caller): Promise<Uint8Array> {
		const run = this.#methods.get(method);
		if (run === undefined) throw new ShimError("call.unimplemented", `the task service has no method ${method}`);
		return run(payload, caller).catch((error: unknown) => {
			throw this.#node.marked(caller.identity.key, error);
		});
	}

	#pod(caller: Caller): Pod {
		const pod = this.#node.find(caller.identity.key);
		if (pod === undefined) throw new ShimError("pod.not-found", `pod ${caller.identity.podId} has no VM`);
		return pod;
	}

	async #create(request: containerd.task.v2.CreateTaskRequest, caller: Caller): Promise<Uint8Array> {
		if (request.checkpoint !== "")
			throw new ShimError("call.unimplemented", "Create from a checkpoint: a confidential VM's memory can't be restored");
		const configFile = optionsConfigFile(request.options);
		const identity = configFile === undefined ? caller.identity : { ...caller.identity, configFile };
		const pod = await this.#node.obtain(identity, caller.mover);
		const pid = await pod.create(
			{
				id: request.id,
				bundle: request.bundle,
				rootfs: request.rootfs.map(rootfsMount),
				stdio: { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal },
			},
			caller.replay,
		);
		return task.CreateTaskResponse.encode({ pid }).finish();
	}

	async #start(request: containerd.task.v2.StartRequest, caller: Caller): Promise<Uint8Array> {
		const pod = this.#pod(caller);
		await pod.container(request.id).start(request.exec_id, caller.replay);
		return task.StartResponse.encode({ pid: pod.pid }).finish();
	}

	async #delete(request: containerd.task.v2.DeleteRequest, caller: Caller): Promise<Uint8Array> {
		const result = await this.#pod(caller).delete(request.id, request.exec_id, caller.replay);
		return task.DeleteResponse.encode({
			pid: result.pid,
			exit_status: result.exitStatus,
			exited_at: timestamp(result.exitedAtMs),
		}).finish();
	}

	async #state(request: containerd.task.v2.StateRequest, caller: Caller): Promise<Uint8Array> {
		const pod = this.#pod(caller);
		const container = pod.container(request.id);
		const process = container.process(request.exec_id);
		return task.StateResponse.encode({
			id: request.id,
			bundle: container.bundle,
			pid: pod.pid,
			status: statusOf(process, container.paused),
			...process.stdio,
			exec_id: request.exec_id,
			...(process.exit === undefined ? {} : { exit_status: process.exit.status, exited_at: timestamp(process.exit.atMs) }),
		}).finish();
	}

	async #pids(request: containerd.task.v2.PidsRequest, caller: Caller): Promise<Uint8Array> {
		const pod = this.#pod(caller);
		const running = pod.container(request.id).init.state.kind !== "stopped";
		return task.PidsResponse.encode({ processes: running ? [{ pid: pod.pid }] : [] }).finish();
	}

	async #pause(request: containerd.task.v2.PauseRequest, caller: Caller): Promise<Uint8Array> {
		await this.#pod(caller).container(request.id).pause();
		return EMPTY;
	}

	async #resume(request: containerd.task.v2.ResumeRequest, caller: Caller): Promise<Uint8Array> {
		await this.#pod(caller).container(request.id).unpause();
		return EMPTY;
	}

	async #kill(request: containerd.task.v2.KillRequest, caller: Caller): Promise<Uint8Array> {
		await this.#pod(caller).container(request.id).kill(request.exec_id, request.signal, request.all);
		return EMPTY;
	}

	async #exec(request: containerd.task.v2.ExecProcessRequest, caller: Caller): Promise<Uint8Array> {
		const what = `the specification of exec ${request.exec_id}`;
		const value = request.spec?.value;
		if (value == null || request.exec_id === "")
			throw new ShimError("call.invalid", `Exec on ${request.id} lacks ${request.exec_id === "" ? "an exec id" : what}`);
		const spec = parseSpec(processSchema, parseJson(Buffer.from(value).toString("utf8"), what), what);
		const stdio = { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
		this.#pod(caller).container(request.id).addExec(request.exec_id, spec, stdio, caller.replay);
		return EMPTY;
	}

	async #resizePty(request: containerd.task.v2.ResizePtyRequest, caller: Caller): Promise<Uint8Array> {
		await this.#pod(caller).container(request.id).resize(request.exec_id, request.width, request.height);
		return EMPTY;
	}

	async #closeIo(request: containerd.task.v2.CloseIORequest, caller: Caller): Promise<Uint8Array> {
		if (request.stdin) this.#pod(caller).container(request.id).closeStdin(request.exec_id);
		return EMPTY;
	}

	async #update(request: containerd.task.v2.UpdateTaskRequest, caller: Caller): Promise<Uint8Array> {
		const what = `the resources of container ${request.id}`;
		const text = Buffer.from(request.resources?.value ?? EMPTY).toString("utf8");
		await this.#pod(caller).update(request.id, parseSpec(resourcesSchema, parseJson(text, what), what));
		return EMPTY;
	}

	async #wait(request: containerd.task.v2.WaitRequest, caller: Caller): Promise<Uint8Array> {
		const process = this.#pod(caller).container(request.id).process(request.exec_id);
		const { timeoutMs } = caller;
		const what = `the end of ${process.name}`;
		const exit = await (timeoutMs === undefined ? process.exited : withDeadline({ what, timeoutMs }, () => process.exited));
		return task.WaitResponse.encode({ exit_status: exit.status, exited_at: timestamp(exit.atMs) }).finish();
	}

	async #stats(request: containerd.task.v2.StatsRequest, caller: Caller): Promise<Uint8Array> {
		const value = encodeMetrics(await this.#pod(caller).container(request.id).stats());
		return task.StatsResponse.encode({ stats: { type_url: METRICS_TYPE_URL, value } }).finish();
	}

	async #connect(request: containerd.task.v2.ConnectRequest, caller: Caller): Promise<Uint8Array> {
		const pod = this.#node.find(caller.identity.key);
		const taskPid = pod?.containers.has(request.id) === true ? pod.pid : 0;
		return task.ConnectResponse.encode({ shim_pid: caller.mover.pid, task_pid: taskPid, version: this.#version }).finish();
	}

	async #shutdown(request: containerd.task.v2.ShutdownRequest, caller: Caller): Promise<Uint8Array> {
		const pod = this.#node.find(caller.identity.key);
		if (pod === undefined) caller.mover.end();
		else await this.#node.shutdown(pod, request.now);
		return EMPTY;
	}
}

function statusOf(process: GuestProcess, paused: boolean): containerd.v1.types.Status {
	switch (process.state.kind) {
		case "created":
		case "starting":
			return Status.CREATED;
		case "running":
			return paused ? Status.PAUSED : Status.RUNNING;
		case "stopped":
			return Status.STOPPED;
	}
}

function rootfsMount(mount: containerd.types.Mount.$Properties): RootfsMount {
	return { type: mount.type ?? "", source: mount.source ?? "", target: mount.target ?? "", options: mount.options ?? [] };
}
