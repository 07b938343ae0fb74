/** snpd's end of the link: accepts keepers and clients of CONTROL on one listening socket. */

import net from "node:net";
import type { Socket } from "node:net";
import * as v from "valibot";
import { errnoOf, explain, ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { Keeper } from "./keeper.ts";
import type { RequestHandler } from "./keeper.ts";
import { encodeLinkJson, HelloSchema, LINK_VERSION, LinkKind, LinkReader, parseLinkJson } from "./link.ts";
import type { LinkFrame } from "./link.ts";

/** What the server calls. */
export interface KeeperHandlers {
	/** A keeper said HELLO. Its requests are held back until this settles; stream states come at once. If it rejects, the link is ended. */
	readonly attached: (keeper: Keeper) => void | Promise<void>;
	/** A call of containerd. */
	readonly request: RequestHandler;
	/** The link of a keeper that was attached is gone. Called once, before the same pod's next `attached`. */
	readonly gone: (keeper: Keeper) => void;
	/** A CONTROL request: parsed JSON, not validated. What it returns is the answer; a rejection is answered as `{"error": text}`. */
	readonly control: (request: unknown) => Promise<Record<string, unknown>>;
	/** How many connections there are, whenever that changes. */
	readonly connections?: (count: number) => void;
}

/** A running server. */
export interface KeeperServer {
	/** Stops listening and ends all links, without END: the keepers wait for the next snpd. */
	readonly close: () => Promise<void>;
}

/** Time for a new connection's first frame, and for a CONTROL client to take its answer and go. */
const FIRST_FRAME_MS = 10_000;
const CONTROL_IDLE_MS = 60_000;
const MAX_CONTROL_UNANSWERED = 16;
/** Above this, a keeper that does not read is not read from either. */
const MAX_UNSENT_BYTES = 4 * 1024 * 1024;
const MAX_CONNECTIONS = 8192;

/**
 * Serves keepers on a socket.
 * @param listen the number of an inherited descriptor that listens already (3 in production), or a path to bind
 * @throws ShimError `internal` when it can't listen there
 */
export async function serveKeepers(listen: number | string, handlers: KeeperHandlers, log: Log): Promise<KeeperServer> {
	const connections = new Set<Connection>();
	const attached = new Map<string, Connection>();
	// Half-open: a client of CONTROL may close its sending side before it reads the answer.
	const server = net.createServer({ allowHalfOpen: true }, (socket) => {
		const connection = new Connection(socket, handlers, log, attached);
		const changed = (): void => handlers.connections?.(connections.size);
		connections.add(connection);
		changed();
		socket.once("close", () => {
			connections.delete(connection);
			changed();
		});
	});
	server.maxConnections = MAX_CONNECTIONS;
	await new Promise<void>((resolve, reject) => {
		server.once("error", (error) => reject(cantListen(listen, error)));
		server.listen(typeof listen === "number" ? { fd: listen } : { path: listen }, resolve);
	});
	server.on("error", (error) => log.error("the keepers' socket failed", error));
	return {
		close: () =>
			new Promise((resolve) => {
				server.close(() => resolve());
				for (const connection of connections) connection.drop();
			}),
	};
}

/** One accepted connection: new, then a keeper's link or a CONTROL client's. */
class Connection {
	readonly #socket: Socket;
	readonly #handlers: KeeperHandlers;
	readonly #log: Log;
	readonly #attached: Map<string, Connection>;
	readonly #reader = new LinkReader();
	#role: "new" | "control" | Keeper = "new";
	#controls = 0;
	#inputEnded = false;
	readonly #firstFrame: NodeJS.Timeout;

	constructor(socket: Socket, handlers: KeeperHandlers, log: Log, attached: Map<string, Connection>) {
		this.#socket = socket;
		this.#handlers = handlers;
		this.#log = log;
		this.#attached = attached;
		this.#firstFrame = setTimeout(
			() => this.#violate(new ShimError("wait.deadline", `no frame within ${FIRST_FRAME_MS} ms`)),
			FIRST_FRAME_MS,
		);
		socket.on("data", (chunk) => this.#receive(chunk));
		socket.on("drain", () => socket.resume());
		socket.on("end", () => this.#ended());
		socket.on("error", (error) => log.warn("a link failed", { error: error.message }));
		socket.on("timeout", () => this.drop());
		socket.once("close", () => this.#closed());
	}

	/** Ends the connection. */
	drop(): void {
		this.#socket.destroy();
		this.#closed();
	}

	#receive(chunk: Buffer): void {
		try {
			for (const frame of this.#reader.push(chunk)) {
				if (this.#socket.destroyed) return;
				this.#accept(frame);
			}
		} catch (error) {
			this.#violate(error);
		}
	}

	#accept(frame: LinkFrame): void {
		if (this.#role instanceof Keeper) {
			this.#role.accept(frame);
			return;
		}
		if (frame.kind === LinkKind.control) {
			this.#acceptControl(frame);
			return;
		}
		if (this.#role === "control" || frame.kind !== LinkKind.hello)
			throw new ShimError("call.invalid", `unexpected frame of kind ${frame.kind} on a new link`);
		this.#attach(frame);
	}

	#attach(frame: LinkFrame): void {
		clearTimeout(this.#firstFrame);
		const hello = parseLinkJson(HelloSchema, "HELLO", frame.payload);
		this.#attached.get(hello.podKey)?.drop();
		const log = this.#log.with({ pod: hello.podId, namespace: hello.namespace });
		const keeper = new Keeper(hello, { send: (bytes) => this.#send(bytes), drop: () => this.drop() }, log, this.#handlers.request);
		this.#role = keeper;
		this.#attached.set(hello.podKey, this);
		this.#send(encodeLinkJson(LinkKind.hello, 0, { version: LINK_VERSION, pid: process.pid }));
		const ready = async (): Promise<void> => this.#handlers.attached(keeper);
		ready().then(
			() => keeper.release(),
			(error: unknown) => {
				log.error("a keeper can't be taken on; its link is ended", error);
				this.drop();
			},
		);
	}

	#acceptControl(frame: LinkFrame): void {
		clearTimeout(this.#firstFrame);
		this.#role = "control";
		if (this.#controls >= MAX_CONTROL_UNANSWERED)
			throw new ShimError("busy", `more than ${MAX_CONTROL_UNANSWERED} CONTROL requests on one connection`);
		const request = parseLinkJson(v.unknown(), "CONTROL", frame.payload);
		this.#controls += 1;
		// The idle bound is the client's; while it waits for us, the handler's own deadlines hold.
		this.#socket.setTimeout(0);
		const respond = (value: Record<string, unknown>): void => {
			this.#controls -= 1;
			this.#send(encodeControl(frame.channel, value));
			if (this.#controls > 0) return;
			this.#socket.setTimeout(CONTROL_IDLE_MS);
			if (this.#inputEnded) this.#socket.end();
		};
		const run = async (): Promise<Record<string, unknown>> => this.#handlers.control(request);
		run().then(respond, (error: unknown) => respond({ error: explain(error) }));
	}

	#send(bytes: Buffer): void {
		if (this.#socket.destroyed) return;
		this.#socket.write(bytes);
		if (this.#socket.writableLength > MAX_UNSENT_BYTES) this.#socket.pause();
	}

	#ended(): void {
		this.#inputEnded = true;
		if (this.#role === "control" && this.#controls > 0) return;
		this.#socket.end();
		if (this.#role instanceof Keeper) this.drop();
	}

	#violate(error: unknown): void {
		const about = this.#role instanceof Keeper ? { pod: this.#role.hello.podId } : {};
		this.#log.error("a link broke the contract and is closed", error, about);
		this.drop();
	}

	#closed(): void {
		clearTimeout(this.#firstFrame);
		const keeper = this.#role;
		if (!(keeper instanceof Keeper) || keeper.gone) return;
		if (this.#attached.get(keeper.hello.podKey) === this) this.#attached.delete(keeper.hello.podKey);
		keeper.lost();
		this.#handlers.gone(keeper);
	}
}

function encodeControl(channel: number, value: Record<string, unknown>): Buffer {
	try {
		return encodeLinkJson(LinkKind.control, channel, value);
	} catch (error) {
		return encodeLinkJson(LinkKind.control, channel, { error: explain(error) });
	}
}

function cantListen(listen: string | number, error: Error): ShimError {
	const remedy =
		errnoOf(error) === "EADDRINUSE"
			? "another snpd serves this folder, or one that was killed has left its socket: stop it, remove the socket, or give another --state-dir"
			: `check that ${typeof listen === "number" ? `descriptor ${listen} is a listening socket` : "its folder exists and may be written"}`;
	return new ShimError("internal", `listening for keepers on ${listen} failed`, { cause: error, remedy });
}
