/**
 * containerd's own gRPC services, as far as images and snapshots need them (containerd, api/services/{containers,content,events,images,introspection,
 * snapshots}/v1 and api/types: the numbers of fields are those of its .proto files). It fails with plain errors.
 */

import { GrpcCode } from "./codes.ts";
import { GrpcChannel, GrpcError } from "./grpc.ts";
import type { GrpcCall } from "./grpc.ts";
import { encodeFields, MessageFields } from "./protobuf-fields.ts";

const SERVICES = "/containerd.services.";

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
	readonly #channel: GrpcChannel;

	/** @param address the path of containerd's socket */
	constructor(address: string) {
		this.#channel = new GrpcChannel(address);
	}

	close(): void {
		this.#channel.close();
	}

	/** A container; undefined when there is none of that id. */
	async container(namespace: string, id: string, call: Call): Promise<ContainerInfo | undefined> {
		const answer = await this.#find("containers.v1.Containers/Get", [[1, id]], namespace, call);
		const container = answer?.message(1);
		return container && { image: container.text(3), snapshotter: container.text(6), snapshotKey: container.text(7) };
	}

	/** The name of the committed snapshot that a snapshot was made of, empty for none; undefined when the snapshot is gone. */
	async parentOf(namespace: string, snapshotter: string, key: string, call: Call): Promise<string | undefined> {
		const answer = await this.#find("snapshots.v1.Snapshots/Stat", snapshotRequest(snapshotter, key), namespace, call);
		return answer?.message(1).text(2);
	}

	/** The mounts of a snapshot; undefined when it is gone. */
	async mounts(namespace: string, snapshotter: string, key: string, call: Call): Promise<readonly MountInfo[] | undefined> {
		const answer = await this.#find("snapshots.v1.Snapshots/Mounts", snapshotRequest(snapshotter, key), namespace, call);
		const mountOf = (mount: MessageFields): MountInfo => ({
			type: mount.text(1),
			source: mount.text(2),
			target: mount.text(3),
			options: mount.texts(4),
		});
		return answer?.messages(1).map(mountOf);
	}

	/** The digest that an image's name points at; undefined when there is no such image. */
	async imageTarget(namespace: string, name: string, call: Call): Promise<string | undefined> {
		const answer = await this.#find("images.v1.Images/Get", [[1, name]], namespace, call);
		return answer?.message(1).message(3).text(2);
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

	/** The pieces of some content. @throws GrpcError `NOT_FOUND` when it is gone */
	async *readContent(namespace: string, digest: string, call: Call): AsyncGenerator<Buffer> {
		for await (const answer of this.#stream("content.v1.Content/Read", [[1, digest]], namespace, call)) yield Buffer.from(answer.bytes(2));
	}

	/** The folder in which the content store keeps its blobs; undefined when containerd does not say. */
	async contentFolder(call: Call): Promise<string | undefined> {
		const answer = await this.#find("introspection.v1.Introspection/Plugins", [[1, "type==io.containerd.content.v1"]], "", call);
		const exports = (answer?.messages(1) ?? []).flatMap((plugin) => plugin.messages(5));
		return exports
			.filter((pair) => pair.text(1) === "root")
			.map((pair) => pair.text(2))
			.find((root) => root !== "");
	}

	/** Images of all namespaces as they come. Ends with an error when the connection does, and when the signal aborts. */
	async *imageEvents(signal: AbortSignal): AsyncGenerator<ImageEvent> {
		const filters: Fields = [
			[1, 'topic=="/images/create"'],
			[1, 'topic=="/images/update"'],
		];
		for await (const envelope of this.#stream("events.v1.Events/Subscribe", filters, "", { timeoutMs: 0, signal })) {
			// Both events, each in an Any, have the image's name as their first field.
			const event = new MessageFields(envelope.message(4).bytes(2));
			yield { namespace: envelope.text(2), name: event.text(1) };
		}
	}

	/** One call; undefined when containerd does not know what it is about. */
	async #find(method: string, request: Fields, namespace: string, call: Call): Promise<MessageFields | undefined> {
		try {
			return new MessageFields(await this.#channel.unary(SERVICES + method, encodeFields(request), bounds(namespace, call)));
		} catch (error) {
			if (isNotFound(error)) return undefined;
			throw error;
		}
	}

	async *#stream(method: string, request: Fields, namespace: string, call: Call): AsyncGenerator<MessageFields> {
		for await (const answer of this.#channel.stream(SERVICES + method, encodeFields(request), bounds(namespace, call)))
			yield new MessageFields(answer);
	}
}

type Fields = Parameters<typeof encodeFields>[0];

const snapshotRequest = (snapshotter: string, key: string): Fields => [
	[1, snapshotter],
	[2, key],
];

function bounds(namespace: string, { timeoutMs, signal }: Call): GrpcCall {
	return { timeoutMs, signal, metadata: namespace === "" ? {} : { "containerd-namespace": namespace } };
}

const isNotFound = (error: unknown): boolean => error instanceof GrpcError && error.code === GrpcCode.NOT_FOUND;
