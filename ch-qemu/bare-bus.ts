/**
 * The machine's buses from outside: I/O ports and memory addresses are read and written as its processors would (QEMU's qtest protocol: a line a command,
 * `OK` and a number for an answer). For what QEMU's monitor has no words for, while the guest stands still.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { join } from "node:path";
import { within } from "./child.ts";
import type { Qmp } from "./qmp.ts";

const NAME = "bare-bus";
const ANSWER_LIMIT_MS = 10_000;

/** Width of an access in bytes. */
export type Width = 1 | 2 | 4;
const MEMORY: Readonly<Record<Width, string>> = { 1: "b", 2: "w", 4: "l" };

export class BareBus {
	readonly #socket: Socket;
	#waiting: { resolve(line: string): void; reject(error: Error): void } | undefined;
	#rest = "";

	private constructor(socket: Socket) {
		this.#socket = socket;
		socket.setEncoding("latin1");
		socket.on("data", (text: string) => this.#take(text));
		socket.on("error", () => undefined);
		socket.on("close", () => this.#waiting?.reject(new Error("QEMU closed its bus")));
	}

	/** Opens the buses of the machine behind that monitor, which can be done once: QEMU 7.2 does not survive the end of such a connection. Rejects when QEMU refuses. */
	static async open(qmp: Qmp): Promise<BareBus> {
		const folder = mkdtempSync("/tmp/ch-qemu-");
		const server = createServer();
		try {
			const path = join(folder, "b");
			const connected = new Promise<Socket>((resolve) => server.once("connection", resolve));
			await new Promise<void>((resolve, reject) => server.once("error", reject).listen(path, resolve));
			const backend = { type: "socket", data: { addr: { type: "unix", data: { path } }, server: false } };
			await qmp.run("chardev-add", { id: NAME, backend });
			const bus = new BareBus(await within(ANSWER_LIMIT_MS, "QEMU did not connect its bus", connected));
			await qmp.run("object-add", { "qom-type": "qtest", id: NAME, chardev: NAME, log: "none" });
			return bus;
		} finally {
			server.close();
			rmSync(folder, { recursive: true, force: true });
		}
	}

	async inl(port: number): Promise<number> {
		return this.#ask(`inl ${hex(port)}`);
	}

	async outl(port: number, value: number): Promise<void> {
		await this.#ask(`outl ${hex(port)} ${hex(value)}`);
	}

	/** @param address in the guest's physical memory */
	async read(width: Width, address: bigint): Promise<number> {
		return this.#ask(`read${MEMORY[width]} ${hex(address)}`);
	}

	async write(width: Width, address: bigint, value: number): Promise<void> {
		await this.#ask(`write${MEMORY[width]} ${hex(address)} ${hex(value)}`);
	}

	async #ask(command: string): Promise<number> {
		const answer = new Promise<string>((resolve, reject) => (this.#waiting = { resolve, reject }));
		this.#socket.write(`${command}\n`);
		const line = await within(ANSWER_LIMIT_MS, `QEMU: ${command}`, answer);
		const [word, number = "0"] = line.split(" ");
		if (word !== "OK") throw new Error(`QEMU: ${command}: ${line}`);
		return Number(BigInt(number) & 0xffffffffn);
	}

	#take(text: string): void {
		this.#rest += text;
		for (let end = this.#rest.indexOf("\n"); end >= 0; end = this.#rest.indexOf("\n")) {
			const line = this.#rest.slice(0, end);
			this.#rest = this.#rest.slice(end + 1);
			// Interrupts are told as well.
			if (!line.startsWith("IRQ ")) this.#waiting?.resolve(line);
		}
	}
}

const hex = (number: number | bigint): string => `0x${number.toString(16)}`;
