/**
 * Connections to ports of the guest through Cloud Hypervisor's hybrid vsock: a unix socket on the host, on which `CONNECT <port>\n` is answered by
 * `OK <host port>\n` once the guest has taken the connection.
 */

import { connect, createServer } from "node:net";
import type { Server, Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

import { deferred, withDeadline } from "../base/deadline.ts";
import { messageOf, ShimError } from "../base/errors.ts";
import { READY_PORT } from "../base/names.ts";

/** How a dial is bounded. */
export interface DialOptions {
	readonly timeoutMs: number;
	readonly signal?: AbortSignal | undefined;
	/** The guest is starting: its agent may tell when it listens, which then is waited for. */
	readonly starting?: boolean | undefined;
}

/** A connection to the guest. */
export interface GuestConnection {
	/** Paused; what the guest sent right after `OK` comes first. The caller destroys it. */
	readonly socket: Socket;
	/** The number after `OK`: with Cloud Hypervisor the port that the guest sees as its peer's. */
	readonly hostPort: number;
}

/** Pauses between attempts, each longer than the one before. */
const RETRY = { firstMs: 20, lastMs: 40, growth: 1.5 };
/** The same while a word of the guest is awaited: Kata's own agent gives none. */
const RETRY_WITHOUT_WORD = { firstMs: 50, lastMs: 200, growth: 2 };
const MAX_ANSWER_BYTES = 32;
const NEWLINE = 0x0a;

/**
 * Connects to a port of the guest. Until the guest's driver is up the VMM keeps `CONNECT` waiting; if the driver is up and nobody listens yet it closes
 * the connection, which is the only case that is tried again: when the guest tells that it listens (docs/contracts.md, "The guest agent"), or after a pause.
 * @param socketPath `VsockConfig.socket`
 * @param port from 0 to 2^32-1
 * @throws ShimError guest.unreachable (also when the time is up), guest.protocol, wait.canceled
 */
export function dialGuest(socketPath: string, port: number, options: DialOptions): Promise<GuestConnection> {
	const what = `port ${port} of the guest behind ${socketPath}`;
	return withDeadline({ what, reason: "guest.unreachable", ...options }, async (signal) => {
		const first = await attempt(socketPath, port, what, signal);
		if (first !== undefined) return first;
		let word = options.starting === true ? await GuestWord.listen(socketPath) : undefined;
		try {
			const { firstMs, lastMs, growth } = word === undefined ? RETRY : RETRY_WITHOUT_WORD;
			// What the guest tells before anybody hears it is missed: with an ear open the next attempt comes at once.
			if (word === undefined) await pause(firstMs, undefined, signal);
			for (let pauseMs = firstMs; ; pauseMs = Math.min(pauseMs * growth, lastMs)) {
				const connection = await attempt(socketPath, port, what, signal);
				if (connection !== undefined) return connection;
				await pause(pauseMs, word, signal);
				// One word is one attempt more, whatever the guest does.
				if (word?.isTold === true) word = undefined;
			}
		} finally {
			word?.close();
		}
	});
}

/** Waits for the guest's word, but not longer than the pause. */
async function pause(ms: number, word: GuestWord | undefined, signal: AbortSignal): Promise<void> {
	const over = new AbortController();
	const slept = sleep(ms, undefined, { signal: AbortSignal.any([signal, over.signal]) });
	slept.catch(() => undefined);
	try {
		await (word === undefined ? slept : Promise.race([slept, word.told]));
	} finally {
		over.abort();
	}
}

/** The guest's word that it listens: its first connection to a port of the host, which the VMM makes one to `<socket>_<port>`. */
class GuestWord {
	readonly #server: Server;
	readonly #told = deferred<void>();
	readonly told: Promise<void> = this.#told.promise;
	isTold = false;

	private constructor(server: Server) {
		this.#server = server;
		server
			.on("error", () => undefined)
			.on("connection", (socket) => {
				// That somebody connects says all.
				socket.on("error", () => undefined).destroy();
				this.isTold = true;
				this.close();
				this.#told.resolve();
			});
	}

	/** Opens an ear; undefined where that can't be done. */
	static listen(socketPath: string): Promise<GuestWord | undefined> {
		const server = createServer();
		return new Promise((resolve) => {
			server.once("error", () => resolve(undefined));
			server.listen(`${socketPath}_${READY_PORT}`, () => resolve(new GuestWord(server)));
		});
	}

	/** Removes the socket. */
	close(): void {
		if (this.#server.listening) this.#server.close();
	}
}

/** One CONNECT; undefined when nobody listens in the guest. */
function attempt(socketPath: string, port: number, what: string, signal: AbortSignal): Promise<GuestConnection | undefined> {
	signal.throwIfAborted();
	return new Promise((resolve, reject) => {
		const socket = connect(socketPath);
		let received: Buffer = Buffer.alloc(0);
		let connected = false;

		const finish = (): void => {
			signal.removeEventListener("abort", onAbort);
			socket.off("connect", onConnect).off("data", onData).off("error", onError).off("close", onClose);
		};
		const fail = (error: unknown): void => {
			finish();
			socket.on("error", () => undefined).destroy();
			reject(error);
		};
		const onAbort = (): void => fail(signal.reason);
		const onConnect = (): void => {
			connected = true;
			socket.write(`CONNECT ${port}\n`);
		};
		const onError = (error: Error): void => {
			// A reset or broken pipe after connecting is the VMM's way of closing; `close` follows.
			if (!connected) fail(new ShimError("guest.unreachable", `${what}: ${messageOf(error)}`, { cause: error }));
		};
		const onClose = (): void => {
			finish();
			resolve(undefined);
		};
		const onData = (chunk: Buffer): void => {
			received = Buffer.concat([received, chunk]);
			const end = received.indexOf(NEWLINE);
			const line = received.toString("latin1", 0, end < 0 ? Math.min(received.byteLength, MAX_ANSWER_BYTES) : end);
			const hostPort = end < 0 ? undefined : /^OK ([0-9]{1,10})$/.exec(line)?.[1];
			if (hostPort === undefined) {
				if (end >= 0 || received.byteLength > MAX_ANSWER_BYTES)
					fail(new ShimError("guest.protocol", `${what}: the answer to CONNECT is ${JSON.stringify(line)}`));
				return;
			}
			socket.pause();
			finish();
			const rest = received.subarray(end + 1);
			if (rest.byteLength > 0) socket.unshift(rest);
			resolve({ socket, hostPort: Number(hostPort) });
		};
		signal.addEventListener("abort", onAbort, { once: true });
		socket.on("connect", onConnect).on("data", onData).on("error", onError).on("close", onClose);
	});
}
