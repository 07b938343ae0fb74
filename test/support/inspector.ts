/**
 * Looks into a Node.js program of a private containerd through its inspector (Node.js, "Debugger"; the Chrome DevTools Protocol): SIGUSR1 opens
 * it on a port of loopback inside the private network namespace, where netcat makes the connection.
 */
import { spawn, type ChildProcessWithoutNullStreams } from "node:child_process";
import { randomBytes } from "node:crypto";
import type { PrivateContainerd } from "./containerd.ts";
import { busyboxPath } from "./image.ts";
import { decodeFrame, encodeFrame, OPCODE } from "./cri/websocket.ts";
import { runOk } from "./process.ts";
import { eventually } from "./retry.ts";

const HOST = "127.0.0.1";
const PORT = 9229;
const OPEN_TIMEOUT_MS = 30_000;
const CALL_TIMEOUT_MS = 60_000;

/** Run in the program on the list of all its objects. */
const COUNT_BY_CLASS = `function () {
	const counts = Object.create(null);
	for (const object of this) {
		let name = "nameless";
		try { name = String(object.constructor?.name || "nameless"); } catch {}
		counts[name] = (counts[name] ?? 0) + 1;
	}
	return counts;
}`;

type RemoteObject = { readonly objectId?: string; readonly value?: unknown };
type Result = {
	readonly result?: RemoteObject;
	readonly objects?: RemoteObject;
	readonly exceptionDetails?: unknown;
	readonly profile?: unknown;
};
type Answer = { readonly id?: number; readonly result?: Result; readonly error?: unknown };

/** The inspector of one program. Its owner calls `close`; the program's port stays open until it ends. */
export class Inspector {
	readonly #child: ChildProcessWithoutNullStreams;
	readonly #waiting = new Map<number, (answer: Answer) => void>();
	#pending: Buffer = Buffer.alloc(0);
	#upgraded = false;
	/** What is to be sent: the inspector drops frames that come with the request for its protocol. */
	#queue: Buffer[] = [];
	#calls = 0;

	private constructor(argv: readonly string[], url: URL) {
		this.#child = spawn(argv[0] ?? "", argv.slice(1), { stdio: "pipe" });
		this.#child.stdin.on("error", () => undefined);
		this.#child.stdout.on("data", (chunk: Buffer) => this.#take(chunk));
		const head = [
			`GET ${url.pathname} HTTP/1.1`,
			`Host: ${url.host}`,
			"Connection: Upgrade",
			"Upgrade: websocket",
			"Sec-WebSocket-Version: 13",
			`Sec-WebSocket-Key: ${randomBytes(16).toString("base64")}`,
		];
		this.#child.stdin.write(`${head.join("\r\n")}\r\n\r\n`);
	}

	/**
	 * Has a program open its inspector, and connects.
	 * @param pid of the program, in the host's view
	 */
	static async open(containerd: PrivateContainerd, pid: number): Promise<Inspector> {
		process.kill(pid, "SIGUSR1");
		const busybox = busyboxPath();
		const url = await eventually(`the inspector of process ${pid}`, OPEN_TIMEOUT_MS, async () => {
			const { stdout } = await runOk(containerd.inside(busybox, "wget", "-q", "-O", "-", `http://${HOST}:${PORT}/json/list`));
			const [target] = JSON.parse(stdout) as readonly { readonly webSocketDebuggerUrl: string }[];
			return target?.webSocketDebuggerUrl;
		});
		// Not in the PID namespace, whose processes are counted.
		const connect = ["nsenter", "-t", String(containerd.init.pid), "-n", busybox, "nc", HOST, String(PORT)];
		const inspector = new Inspector(connect, new URL(url));
		try {
			await inspector.#call("Runtime.enable", {});
			return inspector;
		} catch (error) {
			inspector.close();
			throw error;
		}
	}

	/**
	 * The objects that are alive after everything that can be thrown away was, by the names of their classes. Bytes would tell less: they grow
	 * with the code that is compiled as it is used.
	 */
	async liveObjects(): Promise<Map<string, number>> {
		const prototype = await this.#call("Runtime.evaluate", { expression: "Object.prototype" });
		const found = await this.#call("Runtime.queryObjects", { prototypeObjectId: prototype.result?.objectId });
		const counted = await this.#call("Runtime.callFunctionOn", {
			objectId: found.objects?.objectId,
			functionDeclaration: COUNT_BY_CLASS,
			returnByValue: true,
		});
		await this.#call("Runtime.releaseObject", { objectId: found.objects?.objectId });
		const counts = counted.result?.value;
		if (typeof counts !== "object" || counts === null) throw new Error(`the inspector counted nothing: ${JSON.stringify(counted)}`);
		return new Map(Object.entries(counts as Readonly<Record<string, number>>));
	}

	/**
	 * Runs an expression in the program, with Node's `require` at hand.
	 * @returns its value, which JSON can hold
	 * @throws Error when it throws
	 */
	async evaluate(expression: string): Promise<unknown> {
		const answer = await this.#call("Runtime.evaluate", { expression, includeCommandLineAPI: true, returnByValue: true });
		if (answer.exceptionDetails !== undefined) throw new Error(`${expression}: ${JSON.stringify(answer.exceptionDetails)}`);
		return answer.result?.value;
	}

	/** Begins to note what the program's main thread does. @param intervalMicros between two looks */
	async startProfile(intervalMicros: number): Promise<void> {
		await this.#call("Profiler.enable", {});
		await this.#call("Profiler.setSamplingInterval", { interval: intervalMicros });
		await this.#call("Profiler.start", {});
	}

	/** What was noted: a `Profile` of the Chrome DevTools Protocol. */
	async stopProfile(): Promise<unknown> {
		return (await this.#call("Profiler.stop", {})).profile;
	}

	close(): void {
		this.#child.kill("SIGKILL");
	}

	async #call(method: string, params: object): Promise<Result> {
		const id = ++this.#calls;
		return await new Promise<Result>((resolve, reject) => {
			const finish = (settle: () => void): void => {
				clearTimeout(timer);
				this.#waiting.delete(id);
				this.#child.off("close", ended);
				settle();
			};
			const ended = (): void => finish(() => reject(new Error(`the inspector's connection ended before ${method} was answered`)));
			const timer = setTimeout(
				() => finish(() => reject(new Error(`${method}: the inspector did not answer in ${CALL_TIMEOUT_MS} ms`))),
				CALL_TIMEOUT_MS,
			);
			this.#child.on("close", ended);
			this.#waiting.set(id, (answer) =>
				finish(() =>
					answer.error === undefined ? resolve(answer.result ?? {}) : reject(new Error(`${method}: ${JSON.stringify(answer.error)}`)),
				),
			);
			this.#queue.push(encodeFrame(OPCODE.text, Buffer.from(JSON.stringify({ id, method, params }))));
			this.#flush();
		});
	}

	#flush(): void {
		if (!this.#upgraded) return;
		for (const frame of this.#queue) this.#child.stdin.write(frame);
		this.#queue = [];
	}

	#take(chunk: Buffer): void {
		this.#pending = Buffer.concat([this.#pending, chunk]);
		if (!this.#upgraded) {
			const end = this.#pending.indexOf("\r\n\r\n");
			if (end < 0) return;
			this.#upgraded = true;
			this.#pending = this.#pending.subarray(end + 4);
			this.#flush();
		}
		for (let found = decodeFrame(this.#pending); found !== undefined; found = decodeFrame(this.#pending)) {
			this.#pending = found.rest;
			if (found.frame.opcode !== OPCODE.text) continue;
			const answer = JSON.parse(found.frame.payload.toString("utf8")) as Answer;
			if (answer.id !== undefined) this.#waiting.get(answer.id)?.(answer);
		}
	}
}
