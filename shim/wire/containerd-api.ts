/**
 * containerd's own gRPC services, as far as images and snapshots need them (containerd, api/services/{containers,content,events,images,introspection,
 * snapshots}/v1 and api/types). Built into a file of its own that is loaded when it is first needed, so that starts don't pay for it: it
 * shares no code with the rest, and fails with plain errors.
 */

import { Client, credentials, Metadata } from "@grpc/grpc-js";
import type { ClientReadableStream } from "@grpc/grpc-js";
import protobuf from "protobufjs";

const SERVICES = "/containerd.services.";
const MAX_MESSAGE_BYTES = 16 * 1024 * 1024;
/** gRPC's code of what is not there. */
const NOT_FOUND = 5;

const text = (id: number) => ({ type: "string", id });
const many = (type: string, id: number) => ({ rule: "repeated", type, id });

const TYPES = protobuf.Root.fromJSON({
	nested: {
		Id: { fields: { id: text(1) } },
		Container: { fields: { id: text(1), image: text(3), snapshotter: text(6), snapshotKey: text(7) } },
		ContainerAnswer: { fields: { container: { type: "Container", id: 1 } } },
		SnapshotRequest: { fields: { snapshotter: text(1), key: text(2) } },
		SnapshotInfo: { fields: { name: text(1), parent: text(2) } },
		SnapshotAnswer: { fields: { info: { type: "SnapshotInfo", id: 1 } } },
		Mount: { fields: { type: text(1), source: text(2), target: text(3), options: many("string", 4) } },
		MountsAnswer: { fields: { mounts: many("Mount", 1) } },
		Name: { fields: { name: text(1) } },
		Descriptor: { fields: { mediaType: text(1), digest: text(2), size: { type: "int64", id: 3 } } },
		Image: { fields: { name: text(1), target: { type: "Descriptor", id: 3 } } },
		ImageAnswer: { fields: { image: { type: "Image", id: 1 } } },
		ReadRequest: { fields: { digest: text(1), offset: { type: "int64", id: 2 }, size: { type: "int64", id: 3 } } },
		ReadAnswer: { fields: { offset: { type: "int64", id: 1 }, data: { type: "bytes", id: 2 } } },
		Filters: { fields: { filters: many("string", 1) } },
		Plugin: { fields: { type: text(1), id: text(2), exports: { keyType: "string", ...text(5) } as protobuf.IMapField } },
		PluginsAnswer: { fields: { plugins: many("Plugin", 1) } },
		Any: { fields: { typeUrl: text(1), value: { type: "bytes", id: 2 } } },
		Envelope: { fields: { namespace: text(2), topic: text(3), event: { type: "Any", id: 4 } } },
	},
});

/** A container of containerd's store. */
export interface ContainerInfo {
	readonly image: string;
	readonly snapshotter: string;
	readonly snapshotKey: string;
}

/** A mount in containerd's form. */
export interface MountInfo {
	readonly type: string;
	readonly source: string;
	readonly target: string;
	readonly options: readonly string[];
}

/** An event about an image: it came, or its name points at another one. */
export interface ImageEvent {
	readonly namespace: string;
	readonly name: string;
}

/** Where an answer is bounded in time. */
export interface Call {
	readonly timeoutMs: number;
	readonly signal?: AbortSignal | undefined;
}

/** One containerd, by its socket. */
export class ContainerdApi {
	readonly #client: Client;

	/** @param address the path of containerd's socket */
	constructor(address: string) {
		this.#client = new Client(`unix:${address}`, credentials.createInsecure(), { "grpc.max_receive_message_length": MAX_MESSAGE_BYTES });
	}

	close(): void {
		this.#client.close();
	}

	/** A container; undefined when there is none of that id. */
	async container(namespace: string, id: string, call: Call): Promise<ContainerInfo | undefined> {
		const answer = await this.#find("containers.v1.Containers/Get", "Id", { id }, "ContainerAnswer", namespace, call);
		return answer === undefined ? undefined : (answer["container"] as ContainerInfo);
	}

	/** The name of the committed snapshot that a snapshot was made of, empty for none; undefined when the snapshot is gone. */
	async parentOf(namespace: string, snapshotter: string, key: string, call: Call): Promise<string | undefined> {
		const answer = await this.#find(
			"snapshots.v1.Snapshots/Stat",
			"SnapshotRequest",
			{ snapshotter, key },
			"SnapshotAnswer",
			namespace,
			call,
		);
		return answer === undefined ? undefined : (answer["info"] as { readonly parent: string }).parent;
	}

	/** The mounts of a snapshot; undefined when it is gone. */
	async mounts(namespace: string, snapshotter: string, key: string, call: Call): Promise<readonly MountInfo[] | undefined> {
		const answer = await this.#find(
			"snapshots.v1.Snapshots/Mounts",
			"SnapshotRequest",
			{ snapshotter, key },
			"MountsAnswer",
			namespace,
			call,
		);
		return answer === undefined ? undefined : (answer["mounts"] as readonly MountInfo[]);
	}

	/** The digest that an image's name points at; undefined when there is no such image. */
	async imageTarget(namespace: string, name: string, call: Call): Promise<string | undefined> {
		const answer = await this.#find("images.v1.Images/Get", "Name", { name }, "ImageAnswer", namespace, call);
		return answer === undefined ? undefined : (answer["image"] as { readonly target: { readonly digest: string } }).target.digest;
	}

	/** A piece of content, in one buffer; undefined when it is gone. @throws Error when it has more than `maxBytes` */
	async content(namespace: string, digest: string, maxBytes: number, call: Call): Promise<Buffer | undefined> {
		const parts: Buffer[] = [];
		let bytes = 0;
		try {
			for await (const part of this.readContent(namespace, digest, call)) {
				bytes += part.length;
				if (bytes > maxBytes) throw new Error(`content ${digest} has more than ${maxBytes} bytes`);
				parts.push(part);
			}
		} catch (error) {
			if (isNotFound(error)) return undefined;
			throw error;
		}
		return Buffer.concat(parts);
	}

	/** The pieces of some content. @throws Error with the gRPC code 5 when it is gone */
	async *readContent(namespace: string, digest: string, call: Call): AsyncGenerator<Buffer> {
		const stream = this.#stream("content.v1.Content/Read", "ReadRequest", { digest }, "ReadAnswer", namespace, call);
		for await (const answer of stream as AsyncIterable<Record<string, unknown>>) yield Buffer.from(answer["data"] as Uint8Array);
	}

	/** The folder in which the content store keeps its blobs; undefined when containerd does not say. */
	async contentFolder(call: Call): Promise<string | undefined> {
		const filters = ["type==io.containerd.content.v1"];
		const answer = await this.#find("introspection.v1.Introspection/Plugins", "Filters", { filters }, "PluginsAnswer", "", call);
		const plugins = (answer?.["plugins"] ?? []) as readonly { readonly exports: Readonly<Record<string, string>> }[];
		return plugins.map((plugin) => plugin.exports["root"]).find((root) => root !== undefined && root !== "");
	}

	/** Images of all namespaces as they come. Ends with an error when the connection does, and when the signal aborts. */
	async *imageEvents(signal: AbortSignal): AsyncGenerator<ImageEvent> {
		const filters = ['topic=="/images/create"', 'topic=="/images/update"'];
		const stream = this.#stream("events.v1.Events/Subscribe", "Filters", { filters }, "Envelope", "", { timeoutMs: 0, signal });
		for await (const envelope of stream as AsyncIterable<Record<string, unknown>>) {
			const { value } = envelope["event"] as { readonly value: Uint8Array };
			// Both events have the image's name as their first field.
			const { name } = decode("Name", Buffer.from(value)) as { readonly name: string };
			yield { namespace: envelope["namespace"] as string, name };
		}
	}

	/** One call; undefined when containerd does not know what it is about. */
	async #find(
		method: string,
		requestType: string,
		request: object,
		answerType: string,
		namespace: string,
		call: Call,
	): Promise<Record<string, unknown> | undefined> {
		call.signal?.throwIfAborted();
		return await new Promise((resolve, reject) => {
			const done = (error: Error | null, answer: Record<string, unknown> | undefined): void => {
				call.signal?.removeEventListener("abort", cancel);
				if (error === null) resolve(answer);
				else if (isNotFound(error)) resolve(undefined);
				else reject(error);
			};
			const running = this.#client.makeUnaryRequest(
				SERVICES + method,
				encoder(requestType),
				(bytes) => decode(answerType, bytes),
				request,
				metadataOf(namespace),
				{ deadline: Date.now() + call.timeoutMs },
				(error, answer) => done(error, answer),
			);
			const cancel = (): void => running.cancel();
			call.signal?.addEventListener("abort", cancel, { once: true });
		});
	}

	#stream(
		method: string,
		requestType: string,
		request: object,
		answerType: string,
		namespace: string,
		call: Call,
	): ClientReadableStream<Record<string, unknown>> {
		const options = call.timeoutMs > 0 ? { deadline: Date.now() + call.timeoutMs } : {};
		const stream = this.#client.makeServerStreamRequest(
			SERVICES + method,
			encoder(requestType),
			(bytes) => decode(answerType, bytes),
			request,
			metadataOf(namespace),
			options,
		);
		const cancel = (): void => stream.cancel();
		call.signal?.addEventListener("abort", cancel, { once: true });
		stream.once("close", () => call.signal?.removeEventListener("abort", cancel));
		return stream;
	}
}

function encoder(type: string): (request: object) => Buffer {
	const codec = TYPES.lookupType(type);
	return (request) => Buffer.from(codec.encode(codec.fromObject(request)).finish());
}

function decode(type: string, bytes: Buffer): Record<string, unknown> {
	const codec = TYPES.lookupType(type);
	return codec.toObject(codec.decode(bytes), { longs: Number, defaults: true, arrays: true, objects: true });
}

function metadataOf(namespace: string): Metadata {
	const metadata = new Metadata();
	if (namespace !== "") metadata.set("containerd-namespace", namespace);
	return metadata;
}

function isNotFound(error: unknown): boolean {
	return error instanceof Error && "code" in error && error.code === NOT_FOUND;
}
