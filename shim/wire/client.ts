/** A ttrpc client over one connection: many calls at once, each with its own end. */

import type { Duplex } from "node:stream";
import { asShimError, messageOf, ShimError } from "../base/errors.ts";
import type { ErrorReason } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { decodeResponse, encodeFrame, encodeRequest, FrameReader, FrameType, MAX_DATA_BYTES } from "./frame.ts";
import type { Frame } from "./frame.ts";

/** A status that the peer answered with: its own words, not ours. */
export class RemoteError extends Error {
	override readonly name = "RemoteError";
	/** gRPC status code; a peer may send a number that has no name. */
	readonly code: number;

	constructor(code: number, message: string) {
		super(message);
		this.code = code;
	}
}

/** How a connection is used. */
export interface ClientOptions {
	/** Who is at the other end, for messages: `the guest agent of pod abc`. */
	readonly name: string;
	readonly log: Log;
	/** Reason of the error with which calls fail when the connection ends; `guest.unreachable` unless told. */
	readonly unreachable?: ErrorReason;
	/** Reason of the error when the peer breaks the protocol; `guest.protocol` unless told. */
	readonly violated?: ErrorReason;
	/** Calls with a deadline that may be unanswered at once; one more fails with `busy`. 256 unless told. */
	readonly maxCalls?: number;
	/** The same for calls without a deadline, which are counted apart: whatever waits must not keep others out. 4096 unless told. */
	readonly maxWaits?: number;
	/** Longest answer that is taken; 4 MiB unless told. A longer one ends the connection. */
	readonly maxAnswerBytes?: number;
}

/** How one call is bounded. */
export interface CallOptions {
	/** Time for the answer; 0 for a call that may take for ever (waiting for a process). The peer is told it too. */
	readonly timeoutMs: number;
	/** Gives the call up: a ShimError as its reason is thrown as it is. */
	readonly signal?: AbortSignal | undefined;
	readonly metadata?: Readonly<Record<string, string>>;
}

interface PendingCall {
	readonly resolve: (payload: Uint8Array) => void;
	readonly reject: (error: Error) => void;
}

const DEFAULT_MAX_CALLS = 256;
const DEFAULT_MAX_WAITS = 4096;
const MAX_UNSENT_BYTES = 16 * 1024 * 1024;
const MAX_STREAM_ID = 2 ** 32 - 1;
const MAX_TIMER_MS = 2 ** 31 - 1;

/** Calls a ttrpc server over a connection that it owns: `close` ends it. */
export class TtrpcClient {
	/** Settles when the connection has ended, with the reason; never rejects. */
	readonly closed: Promise<ShimError>;
	readonly #stream: Duplex;
	readonly #options: ClientOptions;
	readonly #reader: FrameReader;
	readonly #pending = new Map<number, PendingCall>();
	#name: string;
	#nextId = 1;
	#waits = 0;
	#end: ShimError | undefined;
	#settleClosed: (reason: ShimError) => void = () => undefined;

	constructor(stream: Duplex, options: ClientOptions) {
		this.#stream = stream;
		this.#options = options;
		this.#name = options.name;
		this.#reader = new FrameReader(options.violated ?? "guest.protocol", options.maxAnswerBytes ?? MAX_DATA_BYTES);
		this.closed = new Promise((resolve) => {
			this.#settleClosed = resolve;
		});
		const unreachable = options.unreachable ?? "guest.unreachable";
		stream.on("data", (chunk: Buffer) => this.#receive(chunk));
		// A stream that was paused on purpose, as one handed over after a handshake is, does not flow by itself.
		stream.resume();
		stream.on("error", (error) =>
			this.close(new ShimError(unreachable, `the connection to ${this.#name} failed: ${messageOf(error)}`, { cause: error })),
		);
		stream.on("end", () => this.close(new ShimError(unreachable, `${this.#name} closed the connection`)));
		stream.on("close", () => this.close(new ShimError(unreachable, `the connection to ${this.#name} was closed`)));
		if (stream.destroyed) this.close(new ShimError(unreachable, `the connection to ${this.#name} was closed`));
	}

	/** Gives the peer another name in messages: it serves somebody else from now on. */
	rename(name: string): void {
		this.#name = name;
	}

	/** How many calls are unanswered. */
	get pendingCalls(): number {
		return this.#pending.size;
	}

	/**
	 * Makes one call and returns the answer's payload.
	 * @throws RemoteError when the peer answers with a status; ShimError `busy` when too many calls are unanswered, `wait.deadline`,
	 * `wait.canceled`, or the reason of the connection's end
	 */
	call(service: string, method: string, payload: Uint8Array, options: CallOptions): Promise<Uint8Array> {
		const what = `${this.#name}: ${method}`;
		const refusal = this.#end ?? this.#refusal(what, options);
		if (refusal !== undefined) return Promise.reject(refusal);
		let frame: Buffer;
		const id = this.#nextId;
		try {
			const timeoutMs = options.timeoutMs > 0 ? options.timeoutMs : undefined;
			frame = encodeFrame(FrameType.request, id, encodeRequest({ service, method, payload, timeoutMs, metadata: options.metadata }));
		} catch (error) {
			return Promise.reject(asShimError(error, "call.invalid", `${what}: ${messageOf(error)}`));
		}
		this.#nextId += 2;
		const answer = this.#await(id, what, options);
		this.#stream.write(frame);
		return answer;
	}

	/** Ends the connection: unanswered and later calls fail with `reason`. Calling it again changes nothing. */
	close(reason?: ShimError): void {
		if (this.#end !== undefined) return;
		const end = reason ?? new ShimError("wait.canceled", `the connection to ${this.#name} was closed on this side`);
		this.#end = end;
		const pending = [...this.#pending.values()];
		this.#pending.clear();
		this.#waits = 0;
		for (const call of pending) call.reject(end);
		this.#stream.destroy();
		this.#settleClosed(end);
	}

	#refusal(what: string, { signal, timeoutMs }: CallOptions): ShimError | undefined {
		if (signal?.aborted === true) return canceled(what, signal.reason);
		const limit = timeoutMs > 0 ? (this.#options.maxCalls ?? DEFAULT_MAX_CALLS) : (this.#options.maxWaits ?? DEFAULT_MAX_WAITS);
		const unanswered = timeoutMs > 0 ? this.#pending.size - this.#waits : this.#waits;
		if (unanswered >= limit) return new ShimError("busy", `${what}: ${limit} calls are unanswered`);
		if (this.#stream.writableLength > MAX_UNSENT_BYTES)
			return new ShimError("busy", `${what}: ${this.#stream.writableLength} bytes wait to be sent`);
		if (this.#nextId > MAX_STREAM_ID)
			return new ShimError(this.#options.unreachable ?? "guest.unreachable", `${what}: the connection has no call numbers left`);
		return undefined;
	}

	#await(id: number, what: string, options: CallOptions): Promise<Uint8Array> {
		return new Promise((resolve, reject) => {
			const waits = options.timeoutMs <= 0;
			let timer: NodeJS.Timeout | undefined;
			const onAbort = (): void => finish(() => reject(canceled(what, options.signal?.reason)));
			const finish = (settle: () => void): void => {
				clearTimeout(timer);
				options.signal?.removeEventListener("abort", onAbort);
				if (this.#pending.delete(id) && waits) this.#waits -= 1;
				settle();
			};
			if (waits) this.#waits += 1;
			this.#pending.set(id, {
				resolve: (payload) => finish(() => resolve(payload)),
				reject: (error) => finish(() => reject(error)),
			});
			options.signal?.addEventListener("abort", onAbort, { once: true });
			if (options.timeoutMs > 0) {
				const late = (): ShimError => new ShimError("wait.deadline", `${what}: no answer within ${options.timeoutMs} ms`);
				timer = setTimeout(() => finish(() => reject(late())), Math.min(options.timeoutMs, MAX_TIMER_MS));
			}
		});
	}

	#receive(chunk: Buffer): void {
		if (this.#end !== undefined) return;
		try {
			for (const frame of this.#reader.push(chunk)) this.#answer(frame);
		} catch (error) {
			const violated = this.#options.violated ?? "guest.protocol";
			const end = asShimError(error, violated, `${this.#name} broke the protocol`);
			this.#options.log.error(`${this.#name} broke the protocol; the connection is closed`, end);
			this.close(end);
		}
	}

	#answer(frame: Frame): void {
		const violated = this.#options.violated ?? "guest.protocol";
		if (frame.type !== FrameType.response || frame.streamId % 2 === 0 || frame.streamId >= this.#nextId) {
			throw new ShimError(
				violated,
				`${this.#name} sent a frame of type ${frame.type} for stream ${frame.streamId}, which was never opened`,
			);
		}
		const call = this.#pending.get(frame.streamId);
		if (call === undefined) return;
		const response = decodeResponse(frame.data, violated);
		if (response.code === 0) call.resolve(response.payload);
		else call.reject(new RemoteError(response.code, response.message));
	}
}

function canceled(what: string, reason: unknown): ShimError {
	return reason instanceof ShimError ? reason : new ShimError("wait.canceled", `${what}: canceled`, { cause: reason });
}
