/** The hybrid vsock socket of a VM: `ch-qemu-vsock` serves it on the host's side and speaks vhost-user with QEMU. */
import { existsSync, unlinkSync } from "node:fs";
import type { Socket } from "node:net";
import { deviceManagerError } from "./api-error.ts";
import { Child } from "./child.ts";
import type { Tools } from "./tools.ts";

/** A connection by its ports, the host's and the guest's. */
export type Ports = readonly [host: number, guest: number];

/** How a back end is started: where it waits for QEMU instead of over a socket pair, and the connections that a restored guest had. */
export type VsockStart = { readonly vhostSocket?: string | undefined; readonly restored?: readonly Ports[] | undefined };

/** The descriptor on which the back end finds its end of the socket pair. */
const VHOST_FD = 3;

export class VsockBackend {
	/** The other end, for QEMU. */
	readonly peer: Socket | undefined;
	readonly #path: string;
	readonly #child: Child;
	#said = "";

	private constructor(path: string, child: Child) {
		this.#path = path;
		this.#child = child;
		child.process.stdout?.on("data", (text: Buffer) => (this.#said += text.toString("latin1")));
		this.peer = (child.process.stdio[VHOST_FD] ?? undefined) as Socket | undefined;
		this.peer?.pause();
	}

	/**
	 * Starts the back end. `path` becomes the hybrid socket (`CONNECT <port>`); it must not exist, as with the real VMM. The socket is there when QEMU,
	 * which has to talk to the back end to start, is. Throws the VMM's error for a path that is taken, and one that says what to do when the program is missing.
	 */
	static start(tools: Tools, path: string, cid: number, { vhostSocket, restored }: VsockStart = {}): VsockBackend {
		if (tools.vsock === undefined) {
			throw deviceManagerError(
				"Cannot create virtio-vsock backend",
				"ch-qemu-vsock is not installed: put it beside ch-qemu or name it in CH_QEMU_VSOCK",
			);
		}
		if (existsSync(path)) {
			throw deviceManagerError(
				"Cannot create virtio-vsock backend",
				"Error binding to the host-side Unix socket",
				"Address in use (os error 98)",
			);
		}
		const vhost = vhostSocket === undefined ? ["--vhost-fd", String(VHOST_FD)] : ["--vhost-socket", vhostSocket];
		const ports = restored === undefined ? [] : ["--restored", restored.map((pair) => pair.join(":")).join(",")];
		const command = [tools.vsock, "--guest-cid", String(cid), "--socket", path, ...vhost, ...ports];
		return new VsockBackend(
			path,
			new Child(tools.leash, command, ["ignore", "pipe", "pipe", vhostSocket === undefined ? "pipe" : "ignore"]),
		);
	}

	/** QEMU has its end: ours is closed, so that the back end ends with QEMU. */
	handedOver(): void {
		this.peer?.destroy();
	}

	/** What the back end complained about. */
	get complaints(): string {
		return this.#child.complaints;
	}

	/** The connections that the guest still had when QEMU left the back end, which ends then. */
	async connections(): Promise<Ports[]> {
		await this.#child.ended;
		const lines = this.#said.split("\n").filter((line) => line !== "");
		return lines.map((line) => line.split(" ").map(Number) as [number, number]);
	}

	/** Ends the back end; the hybrid socket goes with it. */
	async stop(): Promise<void> {
		this.peer?.destroy();
		await this.#child.kill();
		try {
			unlinkSync(this.#path);
		} catch {
			// Never made, or removed by its owner.
		}
	}
}
