/**
 * The guest agent's client: one function per call of the Kata agent protocol that the shim uses. The guest is hostile: every answer has a
 * size limit (the transport's), a deadline and a schema (the codec), and numbers from it are used as data only.
 */

import { messageOf, ShimError } from "../base/errors.ts";
import type { ErrorReason } from "../base/errors.ts";
import {
	FILES_CAPABILITY,
	FORWARD_CAPABILITY,
	HUGE_PAGES_CAPABILITY,
	LIMITS_CAPABILITY,
	PCI_CAPABILITY,
	SCRATCH_CAPABILITY,
	DAMAGE_CAPABILITY,
	STREAMS_CAPABILITY,
	VERITY_CAPABILITY,
	LATE_BINDING_CAPABILITY,
	MOUNTS_CAPABILITY,
	VOLUMES_CAPABILITY,
} from "../base/names.ts";
import { GrpcCode } from "../wire/codes.ts";
import { RemoteError, type TtrpcClient } from "../wire/client.ts";
import { grpc, snp, types } from "../../proto/gen/agent.js";
import { parseGuestMemory } from "./guest-memory.ts";
import type { GuestMemoryInfo } from "./guest-memory.ts";
import { requestJson } from "./request-json.ts";
import type { MessageCodec, NamedRequest } from "./request-json.ts";

const AGENT_SERVICE = "grpc.AgentService";
const HEALTH_SERVICE = "grpc.Health";
/** Our own agent's, behind its capability (proto/agent/extensions.proto). */
const FILES_SERVICE = "snp.v1.Files";
const DAMAGE_SERVICE = "snp.v1.Damage";
const BINDING_SERVICE = "snp.v1.Binding";

/** How long a call may take, and the caller's own end. */
export interface CallOptions {
	readonly signal?: AbortSignal | undefined;
	/** Overrides the client's bound; 0 for calls that wait for something to happen in the guest. */
	readonly timeoutMs?: number;
}

/** A container's resource use, as the agent tells it. */
export type ContainerStats = grpc.StatsContainerResponse.$Properties;

/** What the agent says of itself. */
export interface AgentDetails {
	readonly version: string;
	readonly streams: boolean;
	readonly limits: boolean;
	/** It gives files back. */
	readonly files: boolean;
	readonly forward: boolean;
	/** It changes files of volumes in place. */
	readonly volumes: boolean;
	/** What the guest makes and mounts for volumes lies where the host's file calls don't reach. */
	readonly mounts: boolean;
	/** It makes file systems of its own on disks. */
	readonly scratch: boolean;
	/** It tells what was changed of the guest's disks. */
	readonly damage: boolean;
	/** A guest that waits for its pod takes the pod's policy once. */
	readonly lateBinding: boolean;
	/** It finds disks by whole PCI addresses. */
	readonly pci: boolean;
	/** It reserves huge pages for one container. */
	readonly hugepages: boolean;
	/** It opens layers of a partitioned disk through dm-verity. */
	readonly verity: boolean;
	readonly seccomp: boolean;
}

/** How long ago the guest came how far, in milliseconds: numbers of the guest's own clock, which the host does not trust. */
export interface BootTimes {
	/** The kernel's clock began. */
	readonly beganAgoMs: number;
	/** The kernel started the agent. */
	readonly initAgoMs: number;
	/** The agent took calls. */
	readonly servingAgoMs: number;
}

/** A change of one file, folder or link of a volume (proto/agent/extensions.proto). */
export type VolumeChange = snp.v1.Change.$Properties;

/** What lies directly in a volume. */
export interface VolumeEntry {
	/** Bytes, as file names are. */
	readonly name: Uint8Array;
	/** As in stat(2). */
	readonly mode: number;
	/** A symbolic link's; empty otherwise. */
	readonly target: Uint8Array;
}

/** A route as the agent takes it; `family` is 0 for IPv4 and 1 for IPv6. */
export type RouteToTell = Omit<types.Route.$Properties, "family"> & { readonly family: number };

interface Decoder<T> {
	decode(bytes: Uint8Array): T;
}

/** A process of the guest: the container's first one has the container's id as its exec id (Kata agent protocol). */
export interface ProcessAddress {
	readonly containerId: string;
	/** Empty for the container's first process. */
	readonly execId: string;
}

/** What others get to know of the calls. */
export interface AgentHooks {
	/** Called with every request before it is sent. */
	readonly onRequest?: ((request: NamedRequest) => void) | undefined;
	/** Says more of a request that the guest's policy denies than the guest did; undefined when there is no more to say. Never rejects. */
	readonly onDenied?: ((request: NamedRequest) => Promise<Denial | undefined>) | undefined;
}

/** A denial, explained. */
export interface Denial {
	/** What was denied and why. */
	readonly text: string;
	/** What the pod's owner can do. */
	readonly remedy: string;
}

/** A connection to one guest's agent. */
export class AgentClient {
	readonly #client: TtrpcClient;
	readonly #timeoutMs: number;
	readonly #hooks: AgentHooks;
	#lastDenial: ShimError | undefined;

	/** @param timeoutMs bound of every call that doesn't wait for something to happen */
	constructor(client: TtrpcClient, timeoutMs: number, hooks: AgentHooks = {}) {
		this.#client = client;
		this.#timeoutMs = timeoutMs;
		this.#hooks = hooks;
	}

	/** Settles, with the reason, when the connection has ended; never rejects. */
	get closed(): Promise<ShimError> {
		return this.#client.closed;
	}

	/** Ends the connection; calls under way fail. */
	close(): void {
		this.#client.close();
	}

	/**
	 * The same connection, for somebody else: this client is not to be used any more.
	 * @param name who is at the other end, for messages
	 * @param timeoutMs bound of every call that doesn't wait for something to happen
	 */
	handOver(name: string, timeoutMs: number, hooks: AgentHooks): AgentClient {
		this.#client.rename(name);
		return new AgentClient(this.#client, timeoutMs, hooks);
	}

	/** Asks whether the agent serves. */
	async check(options?: CallOptions): Promise<void> {
		const answer = await this.#call(HEALTH_SERVICE, "Check", grpc.CheckRequest, {}, grpc.HealthCheckResponse, options);
		if (answer.status !== grpc.HealthCheckResponse.ServingStatus.SERVING) {
			throw new ShimError("guest.unreachable", `the guest agent says that it does not serve (status ${answer.status})`);
		}
	}

	/** Makes the sandbox: host name, resolver, shared memory of the pod. */
	async createSandbox(request: grpc.CreateSandboxRequest.$Properties, options?: CallOptions): Promise<void> {
		await this.#send("CreateSandbox", grpc.CreateSandboxRequest, request, options);
	}

	/** Gives the interface with a hardware address its name, addresses and MTU, and brings it up; waits for it when it was just plugged in. */
	async updateInterface(wanted: types.Interface.$Properties, options?: CallOptions): Promise<void> {
		await this.#call(AGENT_SERVICE, "UpdateInterface", grpc.UpdateInterfaceRequest, { interface: wanted }, types.Interface, options);
	}

	/** Makes the guest's main table hold these routes, besides those that its kernel makes. */
	async updateRoutes(routes: readonly RouteToTell[], options?: CallOptions): Promise<void> {
		const Routes = routes.map(({ family, ...rest }) => ({ ...rest, family: FAMILIES[family] ?? types.IPFamily.v4 }));
		await this.#call(AGENT_SERVICE, "UpdateRoutes", grpc.UpdateRoutesRequest, { routes: { Routes } }, grpc.Routes, options);
	}

	/** Adds neighbours to the guest's table. */
	async addNeighbours(neighbours: types.ARPNeighbor.$Properties[], options?: CallOptions): Promise<void> {
		await this.#send("AddARPNeighbors", grpc.AddARPNeighborsRequest, { neighbors: { ARPNeighbors: neighbours } }, options);
	}

	/** Asks what the agent can do, and when its guest came so far; undefined when the agent does not tell. */
	async details(options?: CallOptions): Promise<{ readonly details: AgentDetails; readonly bootTimes: BootTimes | undefined }> {
		const answer = await this.#call(AGENT_SERVICE, "GetGuestDetails", grpc.GuestDetailsRequest, {}, grpc.GuestDetailsResponse, options);
		const details = answer.agent_details;
		return { details: readDetails(details), bootTimes: readBootTimes(details?.boot_times) };
	}
	/** Prepares a container: its storages, namespaces and first process, which does not run yet. */
	async createContainer(request: grpc.CreateContainerRequest.$Properties, options?: CallOptions): Promise<void> {
		await this.#send("CreateContainer", grpc.CreateContainerRequest, request, options);
	}

	/** Starts a prepared container's first process. */
	async startContainer(containerId: string, options?: CallOptions): Promise<void> {
		await this.#send("StartContainer", grpc.StartContainerRequest, { container_id: containerId }, options);
	}

	/** Removes a container and everything that runs in it. */
	async removeContainer(containerId: string, options?: CallOptions): Promise<void> {
		await this.#send("RemoveContainer", grpc.RemoveContainerRequest, { container_id: containerId }, options);
	}

	/** Starts a further process in a container. */
	async execProcess(request: grpc.ExecProcessRequest.$Properties, options?: CallOptions): Promise<void> {
		await this.#send("ExecProcess", grpc.ExecProcessRequest, request, options);
	}

	/** Sends a signal to one process, or with an empty `execId` and SIGKILL to all of the container. */
	async signalProcess(process: ProcessAddress, signalNumber: number, options?: CallOptions): Promise<void> {
		const request = { container_id: process.containerId, exec_id: process.execId, signal: signalNumber };
		await this.#send("SignalProcess", grpc.SignalProcessRequest, request, options);
	}

	/**
	 * Waits, without bound, for a process to end.
	 * @returns its exit status: 0..255, 128 + the signal's number when a signal ended it
	 */
	async waitProcess(process: ProcessAddress, options?: CallOptions): Promise<number> {
		const request = { container_id: process.containerId, exec_id: process.execId };
		const answer = await this.#call(AGENT_SERVICE, "WaitProcess", grpc.WaitProcessRequest, request, grpc.WaitProcessResponse, {
			timeoutMs: 0,
			...options,
		});
		return answer.status & 0xff;
	}

	/** Sets a terminal's size in characters. */
	async resizeTerminal(process: ProcessAddress, columns: number, rows: number, options?: CallOptions): Promise<void> {
		const request = { container_id: process.containerId, exec_id: process.execId, column: columns, row: rows };
		await this.#send("TtyWinResize", grpc.TtyWinResizeRequest, request, options);
	}

	/** Writes to a process's standard input by RPC; gives the number of bytes taken. */
	async writeStdin(process: ProcessAddress, data: Uint8Array, options?: CallOptions): Promise<number> {
		const request = { container_id: process.containerId, exec_id: process.execId, data };
		const answer = await this.#call(AGENT_SERVICE, "WriteStdin", grpc.WriteStreamRequest, request, grpc.WriteStreamResponse, {
			timeoutMs: 0,
			...options,
		});
		return answer.len;
	}

	/** Ends a process's standard input. */
	async closeStdin(process: ProcessAddress, options?: CallOptions): Promise<void> {
		await this.#send("CloseStdin", grpc.CloseStdinRequest, { container_id: process.containerId, exec_id: process.execId }, options);
	}

	/** Reads output by RPC: waits for some, gives nothing at the end of the stream. */
	async readOutput(process: ProcessAddress, stream: "stdout" | "stderr", length: number, options?: CallOptions): Promise<Uint8Array> {
		const request = { container_id: process.containerId, exec_id: process.execId, len: length };
		const method = stream === "stdout" ? "ReadStdout" : "ReadStderr";
		const bounds = { timeoutMs: 0, ...options };
		try {
			return (await this.#call(AGENT_SERVICE, method, grpc.ReadStreamRequest, request, grpc.ReadStreamResponse, bounds)).data;
		} catch (error) {
			if (isEndOfStream(error)) return NO_BYTES;
			throw error;
		}
	}

	/** Reads a container's resource use. */
	stats(containerId: string, options?: CallOptions): Promise<grpc.StatsContainerResponse> {
		return this.#call(
			AGENT_SERVICE,
			"StatsContainer",
			grpc.StatsContainerRequest,
			{ container_id: containerId },
			grpc.StatsContainerResponse,
			options,
		);
	}

	/** What of the guest's memory is free, and available. @throws ShimError `call.unimplemented` when the agent does not tell */
	async memory(options?: CallOptions): Promise<GuestMemoryInfo> {
		const answer = await this.#call(AGENT_SERVICE, "GetMetrics", grpc.GetMetricsRequest, {}, grpc.Metrics, options);
		return parseGuestMemory(answer.metrics);
	}

	/** Changes a container's limits. */
	async updateContainer(containerId: string, resources: grpc.LinuxResources.$Properties, options?: CallOptions): Promise<void> {
		await this.#send("UpdateContainer", grpc.UpdateContainerRequest, { container_id: containerId, resources }, options);
	}

	/** Freezes every process of a container. */
	async pauseContainer(containerId: string, options?: CallOptions): Promise<void> {
		await this.#send("PauseContainer", grpc.PauseContainerRequest, { container_id: containerId }, options);
	}

	/** Thaws a container. */
	async resumeContainer(containerId: string, options?: CallOptions): Promise<void> {
		await this.#send("ResumeContainer", grpc.ResumeContainerRequest, { container_id: containerId }, options);
	}

	/** Brings plugged processors and memory into use; answers when that many processors have come up. */
	async online(vcpus: number, options?: CallOptions): Promise<void> {
		await this.#send("OnlineCPUMem", grpc.OnlineCPUMemRequest, { wait: vcpus > 0, nb_cpus: vcpus, cpu_only: false }, options);
	}

	/** Sets the guest's clock. @param nowMs milliseconds since 1970 */
	async setTime(nowMs: number, options?: CallOptions): Promise<void> {
		const request = { Sec: Math.floor(nowMs / MILLIS_PER_SECOND), Usec: Math.floor(nowMs % MILLIS_PER_SECOND) * MICROS_PER_MS };
		await this.#send("SetGuestDateTime", grpc.SetGuestDateTimeRequest, request, options);
	}

	/** Mixes bytes into the guest's random pool, and has its generator take a new seed. */
	async reseed(data: Uint8Array, options?: CallOptions): Promise<void> {
		await this.#send("ReseedRandomDev", grpc.ReseedRandomDevRequest, { data }, options);
	}

	/** Waits, without bound, until a container runs out of memory; gives the container's id. */
	async oomEvent(options?: CallOptions): Promise<string> {
		const answer = await this.#call(AGENT_SERVICE, "GetOOMEvent", grpc.GetOOMEventRequest, {}, grpc.OOMEvent, { timeoutMs: 0, ...options });
		return answer.container_id;
	}

	/**
	 * Binds the pod's policy to a guest that was started with `bindOnlyInitdata` and waits (docs/contracts.md), for agents with `lateBinding`. It can be done once, and
	 * before it the guest answers `guestDetails` and `destroySandbox` alone. A failure other than `policy.denied` leaves the guest waiting.
	 * @param gzip the initdata as the pod's annotation has it, without its base64
	 * @throws ShimError `policy.denied` when the guest does not wait; `guest.call` with the guest's reason for a policy that it does not bind
	 */
	async bindPolicy(gzip: Uint8Array, options?: CallOptions): Promise<void> {
		await this.#call(BINDING_SERVICE, "BindPolicy", snp.v1.BindPolicyRequest, { initdata: gzip }, snp.v1.BindPolicyResponse, options);
	}

	/** Waits, without bound, until something on the guest's disks is not what it was, for agents with `damage`; gives a sentence. */
	async nextDamage(options?: CallOptions): Promise<string> {
		const bounds = { timeoutMs: 0, ...options };
		return (await this.#call(DAMAGE_SERVICE, "NextDamage", snp.v1.NextDamageRequest, {}, snp.v1.NextDamageResponse, bounds)).text;
	}

	/** What was found changed so far of what a container stands on, for agents with `damage`; empty when all is well. */
	async containerDamage(containerId: string, options?: CallOptions): Promise<string> {
		const request = { container_id: containerId };
		const types = [snp.v1.ContainerDamageRequest, request, snp.v1.ContainerDamageResponse] as const;
		return (await this.#call(DAMAGE_SERVICE, "ContainerDamage", ...types, options)).text;
	}

	/** Writes one piece of a file into the guest (Kata agent protocol, CopyFile). */
	async copyFile(request: grpc.CopyFileRequest.$Properties, options?: CallOptions): Promise<void> {
		await this.#send("CopyFile", grpc.CopyFileRequest, request, options);
	}

	/** Reads the beginning of a plain file of the guest, for agents with `files`. */
	async readFile(path: string, maxBytes: number, options?: CallOptions): Promise<Uint8Array> {
		const request = { path, max_bytes: maxBytes };
		const answer = await this.#call(FILES_SERVICE, "ReadFile", snp.v1.ReadFileRequest, request, snp.v1.ReadFileResponse, options);
		if (answer.data.length > maxBytes)
			throw new ShimError("guest.protocol", `the guest agent gave ${answer.data.length} bytes of ${path}, ${maxBytes} were asked for`);
		return answer.data;
	}

	/** Changes files of a volume in order, for agents with `volumes`; at most 4096 changes and 4 MiB. */
	async changeVolume(volume: string, changes: VolumeChange[], options?: CallOptions): Promise<void> {
		await this.#raw(FILES_SERVICE, "Change", snp.v1.ChangeRequest, { volume, changes }, options);
	}

	/** What lies directly in a volume, for agents with `volumes`; undefined when it is not there, or holds more than the agent tells. */
	async listVolume(volume: string, options?: CallOptions): Promise<VolumeEntry[] | undefined> {
		const answer = await this.#call(FILES_SERVICE, "List", snp.v1.ListRequest, { volume }, snp.v1.ListResponse, options);
		if (!answer.complete) return undefined;
		return answer.entries.map(({ name, mode, target }) => ({
			name: name ?? NO_BYTES,
			mode: mode ?? 0,
			target: target ?? NO_BYTES,
		}));
	}

	async #send<T>(method: string, codec: MessageCodec<T>, request: T, options?: CallOptions): Promise<void> {
		await this.#raw(AGENT_SERVICE, method, codec, request, options);
	}

	async #call<T, A>(
		service: string,
		method: string,
		codec: MessageCodec<T>,
		request: T,
		answer: Decoder<A>,
		options?: CallOptions,
	): Promise<A> {
		const bytes = await this.#raw(service, method, codec, request, options);
		try {
			return answer.decode(bytes);
		} catch (error) {
			throw new ShimError("guest.protocol", `the guest agent's answer to ${method} is not of its form: ${messageOf(error)}`, {
				cause: error,
			});
		}
	}

	async #raw<T>(service: string, method: string, codec: MessageCodec<T>, request: T, options: CallOptions = {}): Promise<Uint8Array> {
		const timeoutMs = options.timeoutMs ?? this.#timeoutMs;
		this.#hooks.onRequest?.(requestJson(method, codec, request));
		try {
			return await this.#client.call(service, method, codec.encode(request).finish(), { timeoutMs, signal: options.signal });
		} catch (error) {
			if (!(error instanceof RemoteError)) throw error;
			if (error.code !== GrpcCode.PERMISSION_DENIED) throw remoteFailure(method, error);
			this.#lastDenial = deniedError(method, error, await this.#hooks.onDenied?.(requestJson(method, codec, request)));
			throw this.#lastDenial;
		}
	}

	/** The last request that the guest's policy denied; undefined when there was none. */
	get lastDenial(): ShimError | undefined {
		return this.#lastDenial;
	}
}

function readDetails(details: grpc.AgentDetails.$Properties | null | undefined): AgentDetails {
	return {
		version: details?.version ?? "",
		streams: details?.extra_features?.includes(STREAMS_CAPABILITY) ?? false,
		limits: details?.extra_features?.includes(LIMITS_CAPABILITY) ?? false,
		files: details?.extra_features?.includes(FILES_CAPABILITY) ?? false,
		forward: details?.extra_features?.includes(FORWARD_CAPABILITY) ?? false,
		volumes: details?.extra_features?.includes(VOLUMES_CAPABILITY) ?? false,
		mounts: details?.extra_features?.includes(MOUNTS_CAPABILITY) ?? false,
		damage: details?.extra_features?.includes(DAMAGE_CAPABILITY) ?? false,
		lateBinding: details?.extra_features?.includes(LATE_BINDING_CAPABILITY) ?? false,
		scratch: details?.extra_features?.includes(SCRATCH_CAPABILITY) ?? false,
		pci: details?.extra_features?.includes(PCI_CAPABILITY) ?? false,
		hugepages: details?.extra_features?.includes(HUGE_PAGES_CAPABILITY) ?? false,
		verity: details?.extra_features?.includes(VERITY_CAPABILITY) ?? false,
		seccomp: details?.supports_seccomp ?? false,
	};
}

const MICROS_PER_MS = 1000;
const MILLIS_PER_SECOND = 1000;

function readBootTimes(times: grpc.BootTimes.$Properties | null | undefined): BootTimes | undefined {
	const nowMs = Number(times?.now_micros ?? 0) / MICROS_PER_MS;
	const agoMs = (micros: Parameters<typeof Number>[0]): number => Math.max(0, nowMs - Number(micros ?? 0) / MICROS_PER_MS);
	return nowMs === 0 ? undefined : { beganAgoMs: nowMs, initAgoMs: agoMs(times?.init_micros), servingAgoMs: agoMs(times?.serving_micros) };
}

const FAMILIES = [types.IPFamily.v4, types.IPFamily.v6];
const NO_BYTES = new Uint8Array(0);

/** Some agents answer a read at the end with nothing, others with this status and text (kata-agent: "read meet eof"). */
function isEndOfStream(error: unknown): boolean {
	return (
		error instanceof ShimError &&
		error.cause instanceof RemoteError &&
		error.cause.code === GrpcCode.INVALID_ARGUMENT &&
		/\beof\b/iu.test(error.cause.message)
	);
}

/** The calls that may fail because of the program that they are to start. */
const STARTING: ReadonlySet<string> = new Set(["CreateContainer", "StartContainer", "ExecProcess"]);

const REASONS: Readonly<Record<number, ErrorReason>> = {
	[GrpcCode.NOT_FOUND]: "process.not-found",
	[GrpcCode.UNIMPLEMENTED]: "call.unimplemented",
	[GrpcCode.ALREADY_EXISTS]: "guest.exists",
	[GrpcCode.FAILED_PRECONDITION]: "guest.state",
	[GrpcCode.DATA_LOSS]: "guest.damage",
};

/** What an owner of the pod can do about words that agents and runtimes use for a program that can't be started. */
const PROGRAM_REMEDIES: readonly (readonly [RegExp, string])[] = [
	[
		/exec format error/iu,
		"the program is no executable of this machine: use an image for linux/amd64, and name the interpreter of a script",
	],
	[/argument list too long/iu, "the kernel takes 128 KiB of one argument or variable, and about 2 MiB of all: pass less, or a file"],
	[/executable file not found|no such file or directory/iu, "check the command, the image's PATH and what the image holds"],
	[/permission denied|is a directory/iu, "check that the command is an executable file for the container's user"],
];

/** What is set up before the program is looked for: the same words mean something else there. */
const BEFORE_PROGRAM: readonly (readonly [RegExp, string])[] = [
	[/\bsysctl\b/iu, "take the kernel parameter out of the pod: the guest's kernel does not have it, or not for a container"],
	[/\b(?:cwd|chdir)\b/iu, "name an absolute path as the working directory"],
	[/^mount\b/iu, "check the mount's type, source and options: the guest's own kernel has to know them"],
];

/** A denial in the host's words where it knows them, else in the agent's. */
function deniedError(method: string, error: RemoteError, denial: Denial | undefined): ShimError {
	if (denial !== undefined) return new ShimError("policy.denied", denial.text, { remedy: denial.remedy });
	return new ShimError("policy.denied", `${method} in the guest: ${error.message}`, { cause: error });
}

/** The agent's own words become the message; what it does not have is told apart from what failed. */
function remoteFailure(method: string, error: RemoteError): ShimError {
	const ofProgram = STARTING.has(method) && error.code !== GrpcCode.DATA_LOSS;
	const known = ofProgram ? [...BEFORE_PROGRAM, ...PROGRAM_REMEDIES].find(([words]) => words.test(error.message)) : undefined;
	return new ShimError(REASONS[error.code] ?? "guest.call", `${method} in the guest: ${error.message}`, {
		remedy: known?.[1] ?? "",
		cause: error,
	});
}
