/**
 * A client of the streaming server behind Exec, Attach and PortForward: WebSocket with the sub-protocol `v4.channel.k8s.io`, in which the first
 * byte of each message names the channel. The server listens inside the private network namespace: netcat makes the connection there.
 */
import { randomBytes } from "node:crypto";
import { spawn, type ChildProcessWithoutNullStreams } from "node:child_process";
import { busyboxPath } from "../image.ts";
import { decodeFrame, encodeFrame, OPCODE } from "./websocket.ts";

const PROTOCOL = "v4.channel.k8s.io";
const CHANNEL = { stdin: 0, stdout: 1, stderr: 2, error: 3, resize: 4 } as const;
const HEADER_BYTES_MAX = 64 * 1024;
const WAIT_MS = 60_000;

/** How a streamed command ended. */
export type StreamEnd = { readonly exitCode: number; readonly message: string };

type StatusMessage = {
	readonly status?: string;
	readonly message?: string;
	readonly details?: { readonly causes?: readonly { readonly reason?: string; readonly message?: string }[] };
};

/** One session. Its owner calls `close`. */
export class StreamSession {
	readonly #child: ChildProcessWithoutNullStreams;
	readonly #received = new Map<number, Buffer[]>();
	readonly #listeners = new Set<() => void>();
	#pending: Buffer = Buffer.alloc(0);
	#upgraded = false;
	#closed = false;
	#failure: Error | undefined;
	#message: Buffer[] = [];

	private constructor(pid: number, url: URL) {
		const argv = ["nsenter", "-t", String(pid), "-n", busyboxPath(), "nc", url.hostname, url.port];
		this.#child = spawn(argv[0] ?? "", argv.slice(1), { stdio: "pipe" });
		this.#child.stdin.on("error", () => undefined);
		this.#child.stdout.on("data", (chunk: Buffer) => this.#take(chunk));
		this.#child.on("close", () => this.#end());
		this.#child.on("error", (error) => this.#end(error));
		this.#child.stdin.write(
			[
				`GET ${url.pathname}${url.search} HTTP/1.1`,
				`Host: ${url.host}`,
				"Connection: Upgrade",
				"Upgrade: websocket",
				"Sec-WebSocket-Version: 13",
				`Sec-WebSocket-Key: ${randomBytes(16).toString("base64")}`,
				`Sec-WebSocket-Protocol: ${PROTOCOL}`,
				"Origin: http://localhost",
				"",
				"",
			].join("\r\n"),
		);
	}

	/**
	 * Connects to an address that the runtime gave.
	 * @param pid a process in the server's network namespace
	 * @throws Error with the server's answer when it refuses
	 */
	static async open(pid: number, address: string): Promise<StreamSession> {
		const session = new StreamSession(pid, new URL(address));
		try {
			await session.#until("the server's answer", () => (session.#upgraded ? true : undefined));
			return session;
		} catch (error) {
			session.close();
			throw error;
		}
	}

	get stdout(): string {
		return this.channel(CHANNEL.stdout).toString("utf8");
	}

	get stderr(): string {
		return this.channel(CHANNEL.stderr).toString("utf8");
	}

	/** What has come on a channel so far (for a port: 2n the data, 2n+1 the errors, each after two bytes with the port). */
	channel(number: number): Buffer {
		return Buffer.concat(this.#received.get(number) ?? []);
	}

	/** Sends bytes on a channel; standard input when none is named. */
	write(data: string | Buffer, channel: number = CHANNEL.stdin): void {
		this.#child.stdin.write(encodeFrame(OPCODE.binary, Buffer.concat([Buffer.from([channel]), Buffer.from(data)])));
	}

	/** Sets the terminal's size in characters. */
	resize(columns: number, rows: number): void {
		this.write(JSON.stringify({ Width: columns, Height: rows }), CHANNEL.resize);
	}

	/** Waits until a text has come on standard output. */
	async waitForOutput(pattern: RegExp): Promise<void> {
		await this.#until(`output like ${pattern}`, () => (pattern.test(this.stdout) ? true : undefined));
	}

	/** Waits until something holds that changes with what comes in. */
	async waitUntil(what: string, holds: () => boolean): Promise<void> {
		await this.#until(what, () => (holds() ? true : undefined));
	}

	/** Waits for the command's end as the server tells it. */
	async ended(): Promise<StreamEnd> {
		return await this.#until("the end of the command", () => this.#status());
	}

	/** Waits until the server has closed the connection. */
	async closed(): Promise<void> {
		await this.#until("the end of the connection", () => (this.#closed ? true : undefined));
	}

	/** Breaks the connection. */
	close(): void {
		this.#child.kill("SIGKILL");
	}

	#status(): StreamEnd | undefined {
		const text = this.channel(CHANNEL.error).toString("utf8");
		if (text === "") return undefined;
		const status = JSON.parse(text) as StatusMessage;
		const message = status.message ?? "";
		if (status.status === "Success") return { exitCode: 0, message };
		const cause = status.details?.causes?.find(({ reason }) => reason === "ExitCode");
		return { exitCode: Number(cause?.message ?? -1), message };
	}

	async #until<T>(what: string, look: () => T | undefined): Promise<T> {
		return await new Promise<T>((resolve, reject) => {
			const finish = (settle: () => void): void => {
				clearTimeout(timer);
				this.#listeners.delete(check);
				settle();
			};
			const check = (): void => {
				const seen = look();
				if (seen !== undefined) finish(() => resolve(seen));
				else if (this.#failure !== undefined) finish(() => reject(this.#failure ?? new Error("unknown")));
				else if (this.#closed) finish(() => reject(new Error(`the stream ended without ${what}; ${this.#describe()}`)));
			};
			const timer = setTimeout(() => finish(() => reject(new Error(`no ${what} in ${WAIT_MS} ms; ${this.#describe()}`))), WAIT_MS);
			this.#listeners.add(check);
			check();
		});
	}

	#describe(): string {
		return `stdout ${JSON.stringify(this.stdout.slice(-500))}, stderr ${JSON.stringify(this.stderr.slice(-500))}`;
	}

	#end(error?: Error): void {
		this.#closed = true;
		if (error !== undefined) this.#failure = error;
		this.#notify();
	}

	#notify(): void {
		for (const listener of [...this.#listeners]) listener();
	}

	#take(chunk: Buffer): void {
		this.#pending = Buffer.concat([this.#pending, chunk]);
		try {
			if (!this.#upgraded) this.#takeAnswer();
			if (this.#upgraded) this.#takeFrames();
		} catch (error) {
			this.#failure = error instanceof Error ? error : new Error(String(error));
			this.close();
		}
		this.#notify();
	}

	#takeAnswer(): void {
		const end = this.#pending.indexOf("\r\n\r\n");
		if (end < 0) {
			if (this.#pending.length > HEADER_BYTES_MAX) throw new Error("the streaming server's answer has no end");
			return;
		}
		const answer = this.#pending.toString("latin1", 0, end);
		if (!answer.startsWith("HTTP/1.1 101 "))
			throw new Error(`the streaming server refused: ${this.#pending.toString("utf8").slice(0, 500)}`);
		this.#pending = this.#pending.subarray(end + 4);
		this.#upgraded = true;
	}

	#takeFrames(): void {
		for (let found = decodeFrame(this.#pending); found !== undefined; found = decodeFrame(this.#pending)) {
			this.#pending = found.rest;
			const { opcode, final, payload } = found.frame;
			if (opcode === OPCODE.ping) this.#child.stdin.write(encodeFrame(OPCODE.pong, payload));
			else if (opcode === OPCODE.close) this.#child.stdin.end(encodeFrame(OPCODE.close, payload));
			else if (opcode <= OPCODE.binary) {
				this.#message.push(payload);
				if (final) this.#deliver();
			}
		}
	}

	#deliver(): void {
		const message = Buffer.concat(this.#message);
		this.#message = [];
		const channel = message[0];
		if (channel === undefined || message.length === 1) return;
		this.#received.set(channel, [...(this.#received.get(channel) ?? []), message.subarray(1)]);
	}
}
