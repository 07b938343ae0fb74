/** QEMU's machine protocol: commands with their answers, and events, as JSON lines over a socket pair. */
import { EventEmitter } from "node:events";
import type { Duplex } from "node:stream";
import { sendFds } from "../native/src/socket.ts";
import { within } from "./child.ts";
import { descriptorOf } from "./http-server.ts";

/** A command that QEMU refused. `message` is QEMU's own description. */
export class QmpError extends Error {
	readonly qmpClass: string;
	constructor(qmpClass: string, description: string) {
		super(description);
		this.name = "QmpError";
		this.qmpClass = qmpClass;
	}
}

export type QmpData = Readonly<Record<string, unknown>>;
type Waiting = { resolve(value: unknown): void; reject(error: Error): void };

const LINE_MAX_CHARS = 4 * 1024 * 1024;
const COMMAND_LIMIT_MS = 30_000;

/** One monitor connection. Emits `event` with (name, data) and `close`. */
export class Qmp extends EventEmitter<{ event: [string, QmpData]; close: [] }> {
	readonly #stream: Duplex;
	readonly #waiting = new Map<number, Waiting>();
	#greeted: Waiting | undefined;
	#next = 1;
	#rest = "";
	#closed = false;

	private constructor(stream: Duplex) {
		super();
		this.#stream = stream;
		stream.on("data", (chunk: Buffer) => this.#take(chunk.toString("utf8")));
		stream.on("error", () => this.#close());
		stream.on("close", () => this.#close());
		stream.on("end", () => this.#close());
	}

	/** Waits for the greeting and leaves the negotiation mode: from here on the machine exists. Rejects when QEMU ends before. */
	static async open(stream: Duplex, limitMs: number): Promise<Qmp> {
		const qmp = new Qmp(stream);
		const greeting = new Promise<unknown>((resolve, reject) => {
			qmp.#greeted = { resolve, reject };
		});
		await within(limitMs, "QEMU did not open its monitor", greeting);
		await qmp.run("qmp_capabilities");
		return qmp;
	}

	/** Runs a command and returns its answer. Rejects with {@link QmpError} when QEMU refuses, with an ordinary error when it is gone or silent for 30 s. */
	run(command: string, args: QmpData = {}): Promise<unknown> {
		return this.#ask(command, args, (line) => void this.#stream.write(line));
	}

	/** Gives QEMU a copy of a descriptor, to be used once under that name. Rejects as `run` does. */
	async give(name: string, fd: number): Promise<void> {
		await this.#ask("getfd", { fdname: name }, (line) => {
			const bytes = Buffer.from(line);
			// Behind a line that waits for room this one would be torn out of order.
			if (this.#stream.writableLength > 0 || sendFds(descriptorOf(this.#stream), bytes, [fd]) < bytes.byteLength)
				throw new Error("QEMU does not read its monitor");
		});
	}

	async #ask(command: string, args: QmpData, send: (line: string) => void): Promise<unknown> {
		if (this.#closed) throw new Error(`${command}: QEMU is gone`);
		const id = this.#next++;
		const answer = new Promise<unknown>((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
		try {
			send(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
			return await within(COMMAND_LIMIT_MS, `QEMU: ${command}`, answer);
		} finally {
			this.#waiting.delete(id);
		}
	}

	#take(text: string): void {
		this.#rest += text;
		for (let end = this.#rest.indexOf("\n"); end >= 0; end = this.#rest.indexOf("\n")) {
			const line = this.#rest.slice(0, end);
			this.#rest = this.#rest.slice(end + 1);
			if (line.trim() !== "") this.#handle(JSON.parse(line) as Record<string, unknown>);
		}
		if (this.#rest.length > LINE_MAX_CHARS) this.#stream.destroy();
	}

	#handle(message: Record<string, unknown>): void {
		if ("QMP" in message) this.#greeted?.resolve(undefined);
		else if (typeof message["event"] === "string") this.emit("event", message["event"], (message["data"] ?? {}) as QmpData);
		else {
			const waiting = this.#waiting.get(Number(message["id"]));
			const error = message["error"] as { class?: string; desc?: string } | undefined;
			if (error !== undefined) waiting?.reject(new QmpError(error.class ?? "", error.desc ?? "no description"));
			else waiting?.resolve(message["return"]);
		}
	}

	#close(): void {
		if (this.#closed) return;
		this.#closed = true;
		const gone = new Error("QEMU closed its monitor");
		this.#greeted?.reject(gone);
		for (const waiting of this.#waiting.values()) waiting.reject(gone);
		this.emit("close");
	}
}
