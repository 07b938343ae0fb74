/** One attached keeper, as snpd sees it: its connections to containerd with their requests, and its stdio streams. */

import { explain, ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { GrpcCode } from "./codes.ts";
import { decodeFrame, decodeRequest, encodeFrame, encodeResponse, FLAG_REMOTE_OPEN, FrameType, MAX_DATA_BYTES } from "./frame.ts";
import type { Request } from "./frame.ts";
import { KeeperStream } from "./keeper-stream.ts";
import { encodeLink, encodeLinkJson, LinkKind, parseLinkJson, StreamStateSchema } from "./link.ts";
import type { Hello, LinkFrame, StreamOpen } from "./link.ts";

/** A call of containerd that came through a keeper. */
export interface KeeperRequest {
	/** The connection of containerd, unique in the life of the keeper. */
	readonly channel: number;
	/** The ttrpc stream, unique in the channel: with `channel` it names the call, also when it is replayed. */
	readonly streamId: number;
	readonly service: string;
	readonly method: string;
	readonly payload: Uint8Array;
	readonly timeoutMs?: number | undefined;
	/** True when an earlier snpd had it too: it may have had its effect. */
	readonly replay: boolean;
}

/** The outcome of a call: a payload, or a gRPC code with a text. */
export type KeeperAnswer = { readonly payload: Uint8Array } | { readonly code: number; readonly message: string };

/** Runs a call. All calls of a channel are started in their order; their answers may come in any order. */
export type RequestHandler = (keeper: Keeper, request: KeeperRequest) => Promise<KeeperAnswer>;

/** How a Keeper talks to its link. */
export interface KeeperLink {
	/** Sends bytes; does nothing once the link is gone. */
	readonly send: (frame: Buffer) => void;
	/** Ends the link. */
	readonly drop: () => void;
}

/** The keeper refuses calls beyond 9216 unanswered ones and 16 MiB; far more than that is a defect, and the link is ended. */
const MAX_UNANSWERED = 16384;
const MAX_UNANSWERED_BYTES = 64 * 1024 * 1024;
const MAX_CHANNELS = 4096;
const MAX_STREAMS = 16384;
const MAX_FINISHED_STREAMS = 1024;

/** An attached keeper. Ends with its link: a keeper that comes back is a new Keeper. */
export class Keeper {
	readonly hello: Hello;
	/** Settles when the link is gone; never rejects. */
	readonly closed: Promise<void>;
	readonly #link: KeeperLink;
	readonly #log: Log;
	readonly #onRequest: RequestHandler;
	/** Open channels, with the count of their unanswered requests and bytes. */
	readonly #channels = new Map<number, { requests: number; bytes: number }>();
	readonly #streams = new Map<number, KeeperStream>();
	readonly #finishedStreams: number[] = [];
	/** Requests that came before the pod was ready for them. */
	#held: (() => void)[] | undefined = [];
	#unanswered = 0;
	#unansweredBytes = 0;
	#gone = false;
	/** Called when containerd has no connection any more. */
	#onLeft: (() => void) | undefined;
	#settleClosed: () => void = () => undefined;

	constructor(hello: Hello, link: KeeperLink, log: Log, onRequest: RequestHandler) {
		this.hello = hello;
		this.#link = link;
		this.#log = log;
		this.#onRequest = onRequest;
		this.closed = new Promise((resolve) => {
			this.#settleClosed = resolve;
		});
		for (const channel of hello.channels) this.#channels.set(channel, { requests: 0, bytes: 0 });
		for (const { id, ...state } of hello.streams) this.#addStream(id).accept(state);
		for (const [id, stream] of this.#streams) if (stream.finished) this.#finishedStreams.push(id);
	}

	/** True once the link is gone: nothing that is sent arrives any more. */
	get gone(): boolean {
		return this.#gone;
	}

	/** How many calls are unanswered. */
	get unanswered(): number {
		return this.#unanswered;
	}

	/**
	 * Has the keeper connect a FIFO with a vsock stream of the guest.
	 * @param open `id` must not have been used with this keeper before; `token` may be empty
	 * @throws ShimError `stream.failed` when the link is gone or too many streams are open, `internal` when the id is in use
	 */
	openStream(open: StreamOpen & { readonly id: number }): KeeperStream {
		const { id, direction, fifo, vsock, port, token } = open;
		if (this.#gone) throw new ShimError("stream.failed", `stdio stream ${id} of pod ${this.hello.podId}: the keeper is gone`);
		if (this.#streams.has(id)) throw new ShimError("internal", `stdio stream ${id} of pod ${this.hello.podId} exists already`);
		if (this.#streams.size >= MAX_STREAMS) throw new ShimError("stream.failed", `pod ${this.hello.podId} has ${MAX_STREAMS} stdio streams`);
		const stream = this.#addStream(id);
		this.#link.send(encodeLinkJson(LinkKind.streamOpen, id, { direction, fifo, vsock, port, token }));
		return stream;
	}

	/** A stream that exists: opened here, or adopted from HELLO after a restart of snpd. */
	stream(id: number): KeeperStream | undefined {
		return this.#streams.get(id);
	}

	/** Leaves the streams that are not among `known` to their readers: an earlier snpd forgot their processes and could not say so. */
	lingerOthers(known: ReadonlySet<number>): void {
		for (const [id, stream] of [...this.#streams]) if (!known.has(id)) stream.close("linger");
	}

	/** Closes one connection of containerd. */
	closeChannel(channel: number): void {
		if (this.#channels.delete(channel)) this.#link.send(encodeLink(LinkKind.closed, channel));
	}

	/** Tells the keeper to pay what it owes to containerd and to exit; `closed` settles when it has. */
	end(): void {
		this.#link.send(encodeLink(LinkKind.end, 0));
	}

	/**
	 * Does so once containerd has closed its connections: its client may lose an answer when the end of the connection comes right behind it.
	 * @param withinMs how long containerd may take
	 */
	endWhenLeft(withinMs: number): void {
		const end = (): void => {
			clearTimeout(timer);
			this.#onLeft = undefined;
			this.end();
		};
		const timer = setTimeout(end, withinMs);
		this.#onLeft = end;
		this.#noticeLeft();
	}

	#noticeLeft(): void {
		if (this.#channels.size === 0) this.#onLeft?.();
	}

	/** Ends the link, as if the keeper had gone. It will come back by itself. */
	drop(): void {
		this.#link.drop();
	}

	/** Starts the requests that came so far, in order, and from now on each at once. */
	release(): void {
		const held = this.#held ?? [];
		this.#held = undefined;
		for (const start of held) start();
	}

	/** Takes one frame of the link. @throws ShimError `call.invalid` when the keeper breaks the contract: the link must end then */
	accept(frame: LinkFrame): void {
		switch (frame.kind) {
			case LinkKind.opened:
				if (this.#channels.size >= MAX_CHANNELS) throw new ShimError("call.invalid", `more than ${MAX_CHANNELS} connections in one keeper`);
				this.#channels.set(frame.channel, { requests: 0, bytes: 0 });
				return;
			case LinkKind.closed:
				this.#forgetChannel(frame.channel);
				return;
			case LinkKind.frame:
			case LinkKind.replay:
				this.#acceptTtrpc(frame);
				return;
			case LinkKind.streamState:
				this.#acceptStreamState(frame);
				return;
			default:
				throw new ShimError("call.invalid", `a keeper sent a frame of kind ${frame.kind}`);
		}
	}

	/** The link is gone: streams fail, answers are dropped. Called by the server. */
	lost(): void {
		if (this.#gone) return;
		this.#gone = true;
		this.#held = [];
		this.#channels.clear();
		for (const stream of this.#streams.values()) stream.fail("the keeper is gone");
		this.#settleClosed();
	}

	#forgetChannel(channel: number): void {
		const counts = this.#channels.get(channel);
		if (counts === undefined) return;
		this.#channels.delete(channel);
		this.#noticeLeft();
		this.#unanswered -= counts.requests;
		this.#unansweredBytes -= counts.bytes;
	}

	#addStream(id: number): KeeperStream {
		const stream = new KeeperStream(
			{ podId: this.hello.podId, id },
			{
				close: (mode) => {
					this.#link.send(encodeLinkJson(LinkKind.streamClose, id, { mode }));
					if (stream.finished || mode === "linger") this.#streams.delete(id);
				},
				ask: () => this.#link.send(encodeLink(LinkKind.streamAsk, id)),
			},
		);
		this.#streams.set(id, stream);
		return stream;
	}

	#acceptStreamState(frame: LinkFrame): void {
		const state = parseLinkJson(StreamStateSchema, "STREAM_STATE", frame.payload);
		const stream = this.#streams.get(frame.channel);
		if (stream === undefined || stream.finished) return;
		stream.accept(state);
		if (!stream.finished) return;
		this.#finishedStreams.push(frame.channel);
		if (this.#finishedStreams.length <= MAX_FINISHED_STREAMS) return;
		const oldest = this.#finishedStreams.shift();
		if (oldest !== undefined) this.#streams.delete(oldest);
	}

	#acceptTtrpc(frame: LinkFrame): void {
		const counts = this.#channels.get(frame.channel);
		if (counts === undefined) return;
		const ttrpc = decodeFrame(frame.payload, "call.invalid");
		if (ttrpc.type !== FrameType.request) {
			this.#log.warn("dropped a ttrpc frame that is no request", { channel: frame.channel, type: ttrpc.type, stream: ttrpc.streamId });
			return;
		}
		const bytes = frame.payload.length;
		if (this.#unanswered >= MAX_UNANSWERED || this.#unansweredBytes + bytes > MAX_UNANSWERED_BYTES) {
			throw new ShimError(
				"call.invalid",
				`a keeper sent more than ${MAX_UNANSWERED} requests or ${MAX_UNANSWERED_BYTES} bytes without an answer`,
			);
		}
		counts.requests += 1;
		counts.bytes += bytes;
		this.#unanswered += 1;
		this.#unansweredBytes += bytes;
		const answer = (value: KeeperAnswer): void => this.#answer(frame.channel, ttrpc.streamId, bytes, value);
		let request: Request;
		try {
			if ((ttrpc.flags & FLAG_REMOTE_OPEN) !== 0) throw new ShimError("call.unimplemented", "streaming calls are not served");
			request = decodeRequest(ttrpc.data);
		} catch (error) {
			const unimplemented = error instanceof ShimError && error.reason === "call.unimplemented";
			answer({ code: unimplemented ? GrpcCode.UNIMPLEMENTED : GrpcCode.INVALID_ARGUMENT, message: explain(error) });
			return;
		}
		const { service, method, payload, timeoutMs } = request;
		const call: KeeperRequest = {
			channel: frame.channel,
			streamId: ttrpc.streamId,
			service,
			method,
			payload,
			timeoutMs,
			replay: frame.kind === LinkKind.replay,
		};
		if (this.#held === undefined) this.#start(call, answer);
		else this.#held.push(() => this.#start(call, answer));
	}

	#start(call: KeeperRequest, answer: (value: KeeperAnswer) => void): void {
		const failed = (error: unknown): void => {
			this.#log.error(`${call.method} failed outside of its error mapping`, error, { pod: this.hello.podId });
			answer({ code: GrpcCode.UNKNOWN, message: explain(error) });
		};
		try {
			this.#onRequest(this, call).then(answer, failed);
		} catch (error) {
			failed(error);
		}
	}

	#answer(channel: number, streamId: number, bytes: number, value: KeeperAnswer): void {
		const counts = this.#channels.get(channel);
		if (counts === undefined) return;
		counts.requests -= 1;
		counts.bytes -= bytes;
		this.#unanswered -= 1;
		this.#unansweredBytes -= bytes;
		this.#link.send(encodeLink(LinkKind.frame, channel, encodeAnswer(streamId, value)));
	}
}

/** Long texts are cut: containerd shows them to people, and a frame has a limit. */
const MAX_MESSAGE_CHARACTERS = 64 * 1024;

function encodeAnswer(streamId: number, value: KeeperAnswer): Buffer {
	const response =
		"payload" in value
			? { code: GrpcCode.OK, message: "", payload: value.payload }
			: {
					code: value.code === GrpcCode.OK ? GrpcCode.UNKNOWN : value.code,
					message: value.message.slice(0, MAX_MESSAGE_CHARACTERS),
					payload: new Uint8Array(0),
				};
	const encoded = encodeResponse(response);
	if (encoded.length <= MAX_DATA_BYTES) return encodeFrame(FrameType.response, streamId, encoded);
	const message = `the answer has ${encoded.length} bytes; ttrpc allows ${MAX_DATA_BYTES}`;
	return encodeFrame(
		FrameType.response,
		streamId,
		encodeResponse({ code: GrpcCode.RESOURCE_EXHAUSTED, message, payload: new Uint8Array(0) }),
	);
}
