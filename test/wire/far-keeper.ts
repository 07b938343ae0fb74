/** The keeper's end of a link, and a server at the other, for tests of what goes over it. */
import net from "node:net";
import type { Socket } from "node:net";
import { join } from "node:path";
import type { Test } from "tap";
import { decodeFrame, decodeResponse, encodeFrame, encodeRequest, FrameType } from "../../shim/wire/frame.ts";
import { serveKeepers } from "../../shim/wire/keeper-server.ts";
import type { KeeperHandlers } from "../../shim/wire/keeper-server.ts";
import type { Keeper } from "../../shim/wire/keeper.ts";
import { encodeLink, encodeLinkJson, LinkKind, LinkReader } from "../../shim/wire/link.ts";
import type { LinkFrame } from "../../shim/wire/link.ts";
import { memoryLog, shortFolder } from "./support.ts";

/** What a keeper says first. */
export const HELLO = {
	version: 1,
	resumed: false,
	pid: 42,
	podKey: "0123456789abcdef0123456789abcdef",
	namespace: "default",
	podId: "pod-a",
	address: "/run/containerd/containerd.sock",
	ttrpcAddress: "/run/containerd/containerd.sock.ttrpc",
	publishBinary: "/usr/bin/containerd",
	configFile: null,
	socket: "/run/k.sock",
	bundle: "/bundle",
	channels: [] as number[],
	streams: [] as Record<string, unknown>[],
};

/** The keeper's end of a link, driven by hand. */
export class FarKeeper {
	readonly socket: Socket;
	readonly #reader = new LinkReader();
	readonly #frames: LinkFrame[] = [];
	#wake: () => void = () => undefined;

	constructor(path: string) {
		this.socket = net.connect(path);
		this.socket.on("error", () => undefined);
		this.socket.on("data", (chunk: Buffer) => {
			this.#frames.push(...this.#reader.push(chunk));
			this.#wake();
		});
		this.socket.on("close", () => this.#wake());
	}

	async next(): Promise<LinkFrame> {
		for (;;) {
			const frame = this.#frames.shift();
			if (frame !== undefined) return frame;
			if (this.socket.destroyed) throw new Error("the link was closed");
			await new Promise<void>((resolve) => (this.#wake = resolve));
		}
	}

	hello(fields: Record<string, unknown> = {}): void {
		this.socket.write(encodeLinkJson(LinkKind.hello, 0, { ...HELLO, ...fields }));
	}

	request(kind: number, channel: number, streamId: number, method: string): void {
		const data = encodeRequest({ service: "svc", method, payload: Buffer.from(method), timeoutMs: 5000 });
		this.socket.write(encodeLink(kind, channel, encodeFrame(FrameType.request, streamId, data)));
	}

	async response(): Promise<{ channel: number; streamId: number; code: number; message: string; text: string }> {
		const { kind, channel, payload } = await this.next();
		if (kind !== LinkKind.frame) throw new Error(`kind ${kind}`);
		const { streamId, data } = decodeFrame(payload, "internal");
		const { code, message, payload: answer } = decodeResponse(data, "internal");
		return { channel, streamId, code, message, text: Buffer.from(answer).toString() };
	}
}

/** A server with handlers that record; each can be replaced. */
export async function serve(t: Test, overrides: Partial<KeeperHandlers> = {}) {
	const { log, lines } = memoryLog();
	const path = join(shortFolder(t), "snpd.sock");
	const keepers: Keeper[] = [];
	const gone: Keeper[] = [];
	let onAttached: (keeper: Keeper) => void = () => undefined;
	let onGone: () => void = () => undefined;
	const handlers: KeeperHandlers = {
		attached: (keeper) => {
			keepers.push(keeper);
			onAttached(keeper);
		},
		request: async (_keeper, call) => ({ payload: Buffer.from(`${call.method} done`) }),
		gone: (keeper) => {
			gone.push(keeper);
			onGone();
		},
		control: async (request) => ({ echo: request }),
		...overrides,
	};
	const server = await serveKeepers(path, handlers, log);
	t.teardown(() => server.close());
	const connect = (): FarKeeper => {
		const far = new FarKeeper(path);
		t.teardown(() => far.socket.destroy());
		return far;
	};
	const attach = async (fields: Record<string, unknown> = {}): Promise<{ far: FarKeeper; keeper: Keeper }> => {
		const far = connect();
		const came = new Promise<Keeper>((resolve) => (onAttached = resolve));
		far.hello(fields);
		const keeper = await came;
		const answer = await far.next();
		t.equal(answer.kind, LinkKind.hello);
		t.same(JSON.parse(answer.payload.toString()), { version: 1, pid: process.pid });
		return { far, keeper };
	};
	const nextGone = (): Promise<void> => new Promise((resolve) => (onGone = resolve));
	return { server, path, connect, attach, keepers, gone, nextGone, lines };
}
