/** A server that speaks to the client as the VMM's API socket does: one request at a time, status lines without a reason, bodies by Content-Length. */

import { createServer } from "node:net";
import type { Server, Socket } from "node:net";

/** A request as it came. */
export interface Received {
	readonly method: string;
	readonly path: string;
	readonly headers: ReadonlyMap<string, string>;
	readonly body: string;
}

/** Gives the bytes of the answer, or nothing when the handler has dealt with the socket itself. */
export type Answer = (request: Received, socket: Socket) => string | undefined | Promise<string | undefined>;

export interface ApiServer {
	readonly path: string;
	/** Connections that were ever made. */
	connections(): number;
	close(): Promise<void>;
}

/** The bytes of an answer in the VMM's form. */
export function answer(status: number, body = ""): string {
	const head = `HTTP/1.1 ${status} \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n`;
	return status === 204
		? `${head}\r\n`
		: `${head}Content-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;
}

/** Serves at `path` until closed. */
export async function serveApi(path: string, handle: Answer): Promise<ApiServer> {
	const sockets = new Set<Socket>();
	let connections = 0;
	const server: Server = createServer((socket) => {
		connections += 1;
		sockets.add(socket);
		socket.on("close", () => sockets.delete(socket));
		socket.on("error", () => undefined);
		let received = "";
		socket.setEncoding("latin1").on("data", (text: string) => {
			received += text;
			const request = parse(received);
			if (request === undefined) return;
			received = "";
			void Promise.resolve(handle(request, socket)).then((bytes) => bytes !== undefined && socket.write(bytes));
		});
	});
	await new Promise<void>((resolve) => server.listen(path, resolve));
	return {
		path,
		connections: () => connections,
		close: () =>
			new Promise((resolve) => {
				server.close(() => resolve());
				for (const socket of sockets) socket.destroy();
			}),
	};
}

function parse(text: string): Received | undefined {
	const end = text.indexOf("\r\n\r\n");
	if (end < 0) return undefined;
	const [first = "", ...lines] = text.slice(0, end).split("\r\n");
	const headers = new Map(lines.map((line) => [line.slice(0, line.indexOf(":")).toLowerCase(), line.slice(line.indexOf(":") + 1).trim()]));
	const body = text.slice(end + 4);
	if (body.length < Number(headers.get("content-length") ?? 0)) return undefined;
	const [method = "", path = ""] = first.split(" ");
	return { method, path, headers, body };
}
