/** Connections to ports of the guest's loopback (docs/contracts.md, "The guest agent"). */

import type { Socket } from "node:net";

import { withDeadline } from "../base/deadline.ts";
import { ShimError } from "../base/errors.ts";
import { FORWARD_PORT } from "../base/names.ts";
import { dialGuest } from "../vmm/vsock.ts";

const CONNECT_MS = 10_000;
const ANSWER = "OK\n";

/**
 * Connects to a TCP port of the guest's loopback through the agent.
 * @param vsock the VM's hybrid vsock socket
 * @returns the connection, paused: what the guest's program sent comes first. The caller destroys it
 * @throws ShimError `guest.unreachable` when nobody listens there
 */
export async function connectGuestPort(vsock: string, port: number): Promise<Socket> {
	const { socket } = await dialGuest(vsock, FORWARD_PORT, { timeoutMs: CONNECT_MS });
	try {
		socket.write(`${port}\n`);
		await withDeadline({ what: `port ${port} of the guest`, timeoutMs: CONNECT_MS }, () => answered(socket, port));
		return socket;
	} catch (error) {
		socket.on("error", () => undefined).destroy();
		throw error;
	}
}

/** Takes the agent's answer off the stream, and nothing behind it. */
function answered(socket: Socket, port: number): Promise<void> {
	return new Promise((resolve, reject) => {
		const finish = (settle: () => void): void => {
			socket.off("readable", onReadable).off("end", onEnd).off("error", onEnd).off("close", onEnd);
			settle();
		};
		const onEnd = (): void => finish(() => reject(new ShimError("guest.unreachable", `nobody listens on port ${port} of the guest`)));
		const onReadable = (): void => {
			const answer: unknown = socket.read(ANSWER.length);
			if (answer === null) return;
			const right = Buffer.isBuffer(answer) && answer.toString("latin1") === ANSWER;
			finish(() => (right ? resolve() : reject(new ShimError("guest.protocol", `the guest's answer for port ${port} is no "OK"`))));
		};
		socket.on("readable", onReadable).on("end", onEnd).on("error", onEnd).on("close", onEnd);
		onReadable();
	});
}
