/**
 * Requests of the agent protocol as the JSON that a policy in the guest has for its input (docs/contracts.md, "Policies"): the names of the
 * `.proto` files, every field present.
 */

import { grpc, snp } from "../../proto/gen/agent.js";

/** A message class that protobufjs has generated. */
export interface MessageCodec<T> {
	encode(message: T): { finish(): Uint8Array };
	decode(bytes: Uint8Array): object;
}

/** Requests whose bytes no policy needs: they are what is copied. */
const WITHOUT_BYTES: ReadonlySet<string> = new Set(["CopyFileRequest", "WriteStreamRequest", "BindPolicyRequest"]);

/** The message of an RPC, where it is not the RPC's name and `Request`. */
const MESSAGES: Readonly<Record<string, string>> = {
	GetGuestDetails: "GuestDetailsRequest",
	ReadStdout: "ReadStreamRequest",
	ReadStderr: "ReadStreamRequest",
	WriteStdin: "WriteStreamRequest",
	GetVolumeStats: "VolumeStatsRequest",
};

/** A request with the name of its message. */
export interface NamedRequest {
	readonly name: string;
	readonly input: unknown;
}

/** The name of the policy's rule for an RPC. */
export function ruleOf(method: string): string {
	return MESSAGES[method] ?? `${method}Request`;
}

/** A request as a policy sees it: absent messages are null, absent texts empty, numbers of 64 bits are plain numbers, bytes are lists of numbers. */
export function requestJson<T>(method: string, codec: MessageCodec<T>, request: T): NamedRequest {
	const name = ruleOf(method);
	const message = codec.decode(codec.encode(request).finish());
	return { name, input: message instanceof snp.v1.ChangeRequest ? changeInput(message) : plain(message, WITHOUT_BYTES.has(name)) };
}

const WHATS = ["folder", "file", "link", "hard_link", "rename", "remove"] as const;

/** A change of a volume says what it is; paths and targets are texts, and what is in files is left out. */
function changeInput({ volume, changes }: snp.v1.ChangeRequest): unknown {
	const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString("utf8");
	return {
		volume,
		changes: changes.map((change) => {
			const what = WHATS.find((one) => change[one] !== null && change[one] !== undefined) ?? "";
			const target = change.link?.target ?? change.hard_link ?? change.rename;
			return { path: text(change.path ?? new Uint8Array()), what, target: target === null || target === undefined ? null : text(target) };
		}),
	};
}

/** A CreateSandbox request, as a policy sees it. */
export function sandboxRequest(request: grpc.CreateSandboxRequest.$Properties): NamedRequest {
	return requestJson("CreateSandbox", grpc.CreateSandboxRequest, request);
}

/** A CreateContainer request, as a policy sees it. */
export function containerRequest(request: grpc.CreateContainerRequest.$Properties): NamedRequest {
	return requestJson("CreateContainer", grpc.CreateContainerRequest, request);
}

/** A request that brings a small file, as a policy sees it. */
export function copyRequest(path: string): NamedRequest {
	return requestJson("CopyFile", grpc.CopyFileRequest, { path, file_mode: 0o100644, dir_mode: 0o755 });
}

function plain(value: unknown, withoutBytes: boolean): unknown {
	if (typeof value !== "object" || value === null) return value;
	if (value instanceof Uint8Array) return withoutBytes ? [] : [...value];
	if (Array.isArray(value)) return value.map((one) => plain(one, withoutBytes));
	if ("toNumber" in value && typeof value.toNumber === "function") return Number(value.toNumber());
	if (value instanceof grpc.LinuxSyscall) return syscall(value);
	// What a message does not have is on its prototype.
	const prototype: unknown = Object.getPrototypeOf(value);
	const isMessage = prototype !== Object.prototype && prototype !== null;
	const names = isMessage ? Object.keys(prototype as object) : [];
	return Object.fromEntries(
		[...new Set([...names, ...Object.keys(value)])].map((name) => [
			isMessage && name === "type" ? "type_" : name,
			plain((value as Record<string, unknown>)[name], withoutBytes),
		]),
	);
}

/** A choice is there as Kata's agent has it. */
function syscall({ Names, Action, Args, errnoret }: grpc.LinuxSyscall): unknown {
	const choice = errnoret === null || errnoret === undefined ? null : { errnoret };
	return { Names: [...(Names ?? [])], Action, Args: plain(Args, false), ErrnoRet: choice };
}
