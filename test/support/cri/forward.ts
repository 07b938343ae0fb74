/** One connection through PortForward, as `kubectl port-forward` makes it. */
import type { CriBed } from "./bed.ts";
import { StreamSession } from "./streams.ts";

/** Channels of the first port, and the bytes of the port's number with which each begins (v4.channel.k8s.io). */
const DATA_CHANNEL = 0;
const ERROR_CHANNEL = 1;
const PORT_BYTES = 2;

/** A port of a pod, reached through the runtime. Its owner calls `close`. */
export class ForwardedPort {
	readonly #session: StreamSession;

	private constructor(session: StreamSession) {
		this.#session = session;
	}

	/** Connects to a TCP port of a pod's loopback. @throws Error with the server's answer when the runtime refuses at once */
	static async open(bed: CriBed, podId: string, port: number): Promise<ForwardedPort> {
		const url = new URL(await bed.client.portForward(podId, [port]));
		url.searchParams.set("port", String(port));
		return new ForwardedPort(await StreamSession.open(bed.containerd.init.pid, url.href));
	}

	/** What the port has sent so far. */
	get received(): Buffer {
		return this.#session.channel(DATA_CHANNEL).subarray(PORT_BYTES);
	}

	/** What the runtime has said is wrong; empty when nothing is. */
	get failure(): string {
		return this.#session.channel(ERROR_CHANNEL).subarray(PORT_BYTES).toString("utf8");
	}

	/** Sends bytes to the port. */
	write(data: string | Buffer): void {
		this.#session.write(data, DATA_CHANNEL);
	}

	/** Waits until what has come holds. @throws Error when the connection ends first or after a minute */
	async waitUntil(what: string, holds: (port: ForwardedPort) => boolean): Promise<void> {
		await this.#session.waitUntil(what, () => holds(this));
	}

	close(): void {
		this.#session.close();
	}
}
