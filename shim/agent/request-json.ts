/**
 * Requests of the agent protocol as the JSON that a policy in the guest has for its input (docs/contracts.md, "Policies"): the names of the
 * `.proto` files, every field present.
 */

import { grpc } from "../../proto/gen/agent.js";

/** A message class that protobufjs has generated. */
export interface MessageCodec<T> {
	encode(message: T): { finish(): Uint8Array };
	decode(bytes: Uint8Array): object;
}

/** Bytes that no policy needs: they are what is copied. */
const LEFT_OUT: ReadonlySet<string> = new Set(["CopyFileRequest", "ChangeRequest"]);

/** The message of an RPC, where it is not the RPC's name and `Request`. */
const MESSAGES: Readonly<Record<string, string>> = {
	GetGuestDetails: "GuestDetailsRequest",
	ReadStdout: "ReadStreamRequest",
	ReadStderr: "ReadStreamRequest",
	WriteStdin: "WriteStreamRequest",
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
	return { name, input: plain(codec.decode(codec.encode(request).finish()), LEFT_OUT.has(name)) };
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
	// What a message does not have is on its prototype.
	const prototype: unknown = Object.getPrototypeOf(value);
	const names = prototype === Object.prototype || prototype === null ? [] : Object.keys(prototype as object);
	return Object.fromEntries(
		[...new Set([...names, ...Object.keys(value)])].map((name) => [name, plain((value as Record<string, unknown>)[name], withoutBytes)]),
	);
}
