/** Events on their way to containerd: strictly in order, kept while containerd is away. */

import net from "node:net";
import protobuf from "protobufjs/minimal.js";
import { deferred } from "../base/deadline.ts";
import type { Deferred } from "../base/deadline.ts";
import { messageOf, ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { RemoteError, TtrpcClient } from "./client.ts";
import { tag } from "./frame.ts";
import { runPublishBinary } from "./publish-binary.ts";

/** Where the events of a pod go: fields of the keeper's HELLO. */
export interface EventTarget {
	/** containerd's ttrpc socket, a path or `unix://path`; empty when containerd gave none. */
	readonly ttrpcAddress: string;
	/** containerd's gRPC socket, for the publish binary. */
	readonly address: string;
	/** containerd's own executable, used when there is no ttrpc address. */
	readonly publishBinary: string;
}

/** One event: a protobuf message with its type URL. */
export interface ContainerdEvent {
	readonly namespace: string;
	/** Such as `/tasks/exit`. */
	readonly topic: string;
	/** Such as `containerd.events.TaskExit`. */
	readonly typeUrl: string;
	/** The encoded message. */
	readonly value: Uint8Array;
	/** When it happened; now, when left out. */
	readonly at?: Date;
}

interface Queued {
	readonly event: ContainerdEvent;
	readonly at: Date;
	readonly delivered: Deferred<boolean>;
}

const SERVICE = "containerd.services.events.ttrpc.v1.Events";
const METHOD = "Forward";
/** containerd/pkg/namespaces: the metadata key of the namespace on ttrpc. */
const NAMESPACE_KEY = "containerd-namespace-ttrpc";
const MAX_QUEUED = 4096;
const CALL_MS = 5_000;
const CONNECT_MS = 5_000;
const FIRST_DELAY_MS = 100;
const MAX_DELAY_MS = 5_000;
/** An event that containerd itself refuses this often is dropped: the ones behind it matter too. */
const MAX_REFUSALS = 3;

/** The queue of one containerd. */
export class EventPublisher {
	readonly #target: EventTarget;
	readonly #log: Log;
	readonly #queue: Queued[] = [];
	#client: TtrpcClient | undefined;
	#running: Promise<void> | undefined;
	readonly #stop = new AbortController();
	#wake: () => void = () => undefined;

	constructor(target: EventTarget, log: Log) {
		this.#target = target;
		this.#log = log;
	}

	/** Events that are not delivered yet. */
	get queued(): number {
		return this.#queue.length;
	}

	/**
	 * Queues an event; sending begins after the caller's turn. When 4096 wait, the oldest is dropped with a line in the log.
	 * @returns true when containerd has it, false when it was dropped; never rejects
	 */
	publish(event: ContainerdEvent): Promise<boolean> {
		const queued: Queued = { event, at: event.at ?? new Date(), delivered: deferred<boolean>() };
		if (this.#stop.signal.aborted) {
			queued.delivered.resolve(false);
			return queued.delivered.promise;
		}
		// The head may be on its way: the one behind it is the oldest that surely is not.
		if (this.#queue.length >= MAX_QUEUED) this.#drop(1, "too many events wait for containerd");
		this.#queue.push(queued);
		this.#running ??= this.#run().finally(() => {
			this.#running = undefined;
		});
		return queued.delivered.promise;
	}

	/**
	 * Waits until all events that are queued now are delivered or dropped; tries at once if it was waiting to try again.
	 * @returns false when `timeoutMs` passed first
	 */
	async flush(timeoutMs: number): Promise<boolean> {
		const last = this.#queue.at(-1);
		if (last === undefined) return true;
		this.#wake();
		let timer: NodeJS.Timeout | undefined;
		const late = new Promise<false>((resolve) => {
			timer = setTimeout(() => resolve(false), timeoutMs);
		});
		try {
			return await Promise.race([last.delivered.promise.then(() => true), late]);
		} finally {
			clearTimeout(timer);
		}
	}

	/** Gives up what is queued and closes the connection. */
	async close(): Promise<void> {
		this.#stop.abort();
		this.#wake();
		this.#client?.close();
		await this.#running;
	}

	async #run(): Promise<void> {
		await Promise.resolve();
		let delayMs = FIRST_DELAY_MS;
		let refusals = 0;
		for (let head = this.#queue[0]; head !== undefined; head = this.#queue[0]) {
			if (this.#stop.signal.aborted) {
				this.#log.warn("events are not sent any more", { topics: this.#queue.map((queued) => queued.event.topic).join(" ") });
				for (const { delivered } of this.#queue.splice(0)) delivered.resolve(false);
				return;
			}
			try {
				await this.#send(head);
				this.#queue.shift();
				head.delivered.resolve(true);
				delayMs = FIRST_DELAY_MS;
				refusals = 0;
				continue;
			} catch (error) {
				const refused = error instanceof RemoteError;
				refusals += refused ? 1 : 0;
				this.#log.warn("an event was not taken by containerd", {
					topic: head.event.topic,
					error: messageOf(error),
					queued: this.#queue.length,
				});
				if (refusals >= MAX_REFUSALS) {
					this.#drop(0, "containerd refused it");
					refusals = 0;
					continue;
				}
			}
			await this.#pause(delayMs);
			delayMs = Math.min(delayMs * 2, MAX_DELAY_MS);
		}
	}

	async #send({ event, at }: Queued): Promise<void> {
		const any = encodeAny(event.typeUrl, event.value);
		if (this.#target.ttrpcAddress === "") {
			await runPublishBinary(
				{ binary: this.#target.publishBinary, address: this.#target.address, topic: event.topic, namespace: event.namespace },
				any,
				this.#stop.signal,
			);
			return;
		}
		this.#client ??= await this.#connect(this.#target.ttrpcAddress);
		const metadata = { [NAMESPACE_KEY]: event.namespace };
		try {
			await this.#client.call(SERVICE, METHOD, encodeForward(event, at, any), { timeoutMs: CALL_MS, metadata });
		} catch (error) {
			// After a late answer, only a new connection keeps the order certain.
			if (!(error instanceof RemoteError)) {
				this.#client?.close();
				this.#client = undefined;
			}
			throw error;
		}
	}

	#connect(address: string): Promise<TtrpcClient> {
		const path = address.replace(/^unix:\/\//, "");
		return new Promise((resolve, reject) => {
			const socket = net.connect({ path });
			const fail = (why: string): void => {
				socket.destroy();
				reject(new ShimError("internal", `connecting to containerd's events at ${path} failed: ${why}`));
			};
			const timer = setTimeout(() => fail(`no answer within ${CONNECT_MS} ms`), CONNECT_MS);
			const onError = (error: Error): void => {
				clearTimeout(timer);
				fail(error.message);
			};
			socket.once("error", onError);
			socket.once("connect", () => {
				clearTimeout(timer);
				socket.off("error", onError);
				const client = new TtrpcClient(socket, {
					name: `containerd at ${path}`,
					log: this.#log,
					unreachable: "internal",
					violated: "internal",
				});
				void client.closed.then(() => {
					if (this.#client === client) this.#client = undefined;
				});
				resolve(client);
			});
		});
	}

	#drop(index: number, why: string): void {
		const [dropped] = this.#queue.splice(index, 1);
		if (dropped === undefined) return;
		this.#log.error("an event is lost", new ShimError("busy", why), { topic: dropped.event.topic, namespace: dropped.event.namespace });
		dropped.delivered.resolve(false);
	}

	#pause(delayMs: number): Promise<void> {
		return new Promise((resolve) => {
			const timer = setTimeout(resolve, delayMs);
			this.#wake = () => {
				clearTimeout(timer);
				this.#wake = () => undefined;
				resolve();
			};
			if (this.#stop.signal.aborted) this.#wake();
		});
	}
}

/** One EventPublisher per containerd, made when first asked for. */
export class EventPublishers {
	readonly #log: Log;
	readonly #publishers = new Map<string, EventPublisher>();

	constructor(log: Log) {
		this.#log = log;
	}

	/** The queue of this target. */
	for(target: EventTarget): EventPublisher {
		const key = target.ttrpcAddress === "" ? `${target.publishBinary}\0${target.address}` : target.ttrpcAddress;
		let publisher = this.#publishers.get(key);
		if (publisher === undefined) {
			publisher = new EventPublisher(target, this.#log);
			this.#publishers.set(key, publisher);
		}
		return publisher;
	}

	/** Closes all queues. */
	async close(): Promise<void> {
		await Promise.allSettled([...this.#publishers.values()].map((publisher) => publisher.close()));
	}
}

/** google.protobuf.Any{type_url=1, value=2}. */
function encodeAny(typeUrl: string, value: Uint8Array): Uint8Array {
	return protobuf.Writer.create().uint32(tag(1, 2)).string(typeUrl).uint32(tag(2, 2)).bytes(value).finish();
}

/** ForwardRequest{envelope=1{timestamp=1{seconds=1,nanos=2}, namespace=2, topic=3, event=4}}. */
function encodeForward(event: ContainerdEvent, at: Date, any: Uint8Array): Uint8Array {
	const ms = at.getTime();
	const writer = protobuf.Writer.create();
	writer.uint32(tag(1, 2)).fork();
	writer
		.uint32(tag(1, 2))
		.fork()
		.uint32(tag(1, 0))
		.int64(Math.floor(ms / 1000))
		.uint32(tag(2, 0))
		.int32((ms % 1000) * 1_000_000)
		.ldelim();
	writer.uint32(tag(2, 2)).string(event.namespace);
	writer.uint32(tag(3, 2)).string(event.topic);
	writer.uint32(tag(4, 2)).bytes(any);
	return writer.ldelim().finish();
}
