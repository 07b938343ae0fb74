/**
 * The API's HTTP server: ten connections, one request at a time over all of them, no reason phrases.
 *
 * Node's own server would be friendlier than the VMM's: chunked bodies, reason phrases, parallel requests. A client that works here must work there.
 */
import { createServer, type Server, type Socket } from "node:net";
import { receive, type Received } from "../native/src/receive.ts";
import { messageOf } from "./api-error.ts";
import { within } from "./child.ts";
import { closeAll, Descriptors } from "./descriptors.ts";
import { type HttpEvent, HttpParser, type ReceivedRequest } from "./http-request.ts";
import type { Turns } from "./turns.ts";

/** An answer. `body` undefined: none, and no length header either for 204. */
export type HttpAnswer = { readonly status: number; readonly body?: string };

/** What answers a request. A thrown error closes the connection without an answer. */
export type HttpHandler = (request: ReceivedRequest) => Promise<HttpAnswer>;

const CONNECTIONS_MAX = 10;
const FLUSH_LIMIT_MS = 1000;
const SERVER = "Cloud Hypervisor API";

/** Where the server listens: a path (made, and removed by `close`), or a descriptor that already listens. */
export type HttpAddress = { readonly path: string } | { readonly fd: number };

export class HttpServer {
	readonly #server: Server;
	readonly #handler: HttpHandler;
	readonly #connections = new Set<Socket>();
	readonly #turns: Turns;

	private constructor(handler: HttpHandler, turns: Turns) {
		this.#handler = handler;
		this.#turns = turns;
		// Node must not read: it would lose the descriptors that come beside the bytes.
		this.#server = createServer({ pauseOnConnect: true }, (socket) => this.#accept(socket));
	}

	/** Starts to listen. Requests of all connections take their turn in `turns`. Rejects with the operating system's error. */
	static async listen(address: HttpAddress, handler: HttpHandler, turns: Turns): Promise<HttpServer> {
		const server = new HttpServer(handler, turns);
		await new Promise<void>((resolve, reject) => {
			server.#server.once("error", reject);
			server.#server.listen(address, () => resolve());
		});
		return server;
	}

	/**
	 * Ends the connections. Resolves when what was answered has left, or after a second. The listening socket stays as it is: whether its file goes is
	 * the program's decision, and closing it here would remove the file.
	 */
	async endConnections(): Promise<void> {
		const left = [...this.#connections].map((socket) => new Promise<void>((resolve) => socket.end(() => resolve())));
		await within(FLUSH_LIMIT_MS, "a client does not read its answer", Promise.all(left)).catch(() => undefined);
	}

	#accept(socket: Socket): void {
		socket.on("error", () => socket.destroy());
		if (this.#connections.size >= CONNECTIONS_MAX) {
			socket.end(
				'HTTP/1.1 503 \r\nServer: Cloud Hypervisor API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n{ "error": "Too many open connections" }',
			);
			return;
		}
		this.#connections.add(socket);
		const parser = new HttpParser();
		// Descriptors come with a request's first bytes, and wait here for its last.
		const waiting: number[] = [];
		const stop = receive(descriptorOf(socket), (received) => {
			waiting.push(...received.fds);
			if (received.bytes.byteLength === 0) socket.destroySoon();
			else this.#take(socket, parser, received, waiting);
		});
		socket.on("close", () => {
			this.#connections.delete(socket);
			stop();
			closeAll(waiting.splice(0));
		});
	}

	#take(socket: Socket, parser: HttpParser, received: Received, waiting: number[]): void {
		for (const event of parser.push(received.bytes)) {
			const descriptors = new Descriptors(event.kind === "request" ? waiting.splice(0) : []);
			try {
				void this.#turns.run(() => this.#serve(socket, event, descriptors));
			} catch {
				// A client that sends more than may wait is cut off.
				descriptors.close();
				socket.destroy();
			}
		}
	}

	async #serve(socket: Socket, event: HttpEvent, descriptors: Descriptors): Promise<void> {
		if (event.kind === "continue") {
			socket.write(`HTTP/1.1 100 \r\nServer: ${SERVER}\r\nConnection: keep-alive\r\n\r\n`);
			return;
		}
		if (event.kind === "bad") {
			// The raw newline inside the string is the real server's: its own refusals are no valid JSON.
			const body = `{ "error": "${event.reason}\nAll previous unanswered requests will be dropped." }`;
			socket.end(format({ status: 400, body }, true));
			return;
		}
		try {
			const answer = await this.#handler({ ...event.request, descriptors });
			socket.write(format(answer, event.request.keepAlive));
		} catch (error) {
			process.stderr.write(`ch-qemu: ${event.request.path}: ${messageOf(error)}\n`);
			socket.destroy();
		} finally {
			descriptors.close();
		}
	}
}

/** The socket's descriptor, which Node keeps to itself. */
export function descriptorOf(socket: object): number {
	const { fd } = (socket as { readonly _handle: { readonly fd: number } })._handle;
	return fd;
}

function format(answer: HttpAnswer, keepAlive: boolean): string {
	const head = `HTTP/1.1 ${answer.status} \r\nServer: ${SERVER}\r\nConnection: ${keepAlive ? "keep-alive" : "close"}\r\n`;
	if (answer.status === 204) return `${head}\r\n`;
	const body = answer.body ?? "";
	return `${head}Content-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;
}
