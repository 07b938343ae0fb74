/**
 * Connections to ports of the guest through Cloud Hypervisor's hybrid vsock: a unix socket on the host, on which `CONNECT <port>\n` is answered by
 * `OK <host port>\n` once the guest has taken the connection.
 */

import { connect } from "node:net";
import type { Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

import { withDeadline } from "../base/deadline.ts";
import { messageOf, ShimError } from "../base/errors.ts";

/** How a dial is bounded. */
export interface DialOptions {
	readonly timeoutMs: number;
	readonly signal?: AbortSignal | undefined;
}

/** A connection to the guest. */
export interface GuestConnection {
	/** Paused; what the guest sent right after `OK` comes first. The caller destroys it. */
	readonly socket: Socket;
	/** The number after `OK`: with Cloud Hypervisor the port that the guest sees as its peer's. */
	readonly hostPort: number;
}

const FIRST_RETRY_MS = 10;
const LAST_RETRY_MS = 20;
const RETRY_GROWTH = 1.5;
const MAX_ANSWER_BYTES = 32;
const NEWLINE = 0x0a;

/**
 * Connects to a port of the guest. Until the guest's driver is up the VMM keeps `CONNECT` waiting; if the driver is up and nobody listens yet it closes
 * the connection, which is the only case that is tried again.
 * @param socketPath `VsockConfig.socket`
 * @param port from 0 to 2^32-1
 * @throws ShimError guest.unreachable (also when the time is up), guest.protocol, wait.canceled
 */
export function dialGuest(socketPath: string, port: number, options: DialOptions): Promise<GuestConnection> {
	const what = `port ${port} of the guest behind ${socketPath}`;
	return withDeadline({ what, reason: "guest.unreachable", ...options }, async (signal) => {
		for (let pauseMs = FIRST_RETRY_MS; ; pauseMs = Math.min(pauseMs * RETRY_GROWTH, LAST_RETRY_MS)) {
			const connection = await attempt(socketPath, port, what, signal);
			if (connection !== undefined) return connection;
			await sleep(pauseMs, undefined, { signal });
		}
	});
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
