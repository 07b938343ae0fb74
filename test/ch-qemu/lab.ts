/** Starts `ch-qemu` as a client would, and talks to it over plain sockets. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, watch } from "node:fs";
import { createConnection, Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { buildSync } from "esbuild";
import type { Test } from "tap";
import { connectUnix, sendFds } from "../../native/src/socket.ts";
import { COMMAND_LINE, guestInitramfs, guestKernel } from "./guest.ts";

export type Answer = { status: number; reason: string; headers: Record<string, string>; text: string; json: unknown };
export type Ended = { code: number | null; signal: NodeJS.Signals | null };

const repository = fileURLToPath(new URL("../..", import.meta.url));
const WAIT_LIMIT_MS = 60_000;

let program: string | undefined;

/** The program in one file, as it is shipped. Made once a process, removed at its end. */
export function bundle(): string {
	if (program !== undefined) return program;
	const folder = mkdtempSync(join(tmpdir(), "ch-qemu-test-"));
	process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
	program = join(folder, "bin", "ch-qemu.mjs");
	mkdirSync(join(folder, "lib"));
	symlinkSync(join(repository, "build/Release/snp_native.node"), join(folder, "lib", "snp_native.node"));
	buildSync({
		entryPoints: [join(repository, "ch-qemu/main.ts")],
		bundle: true,
		platform: "node",
		format: "esm",
		target: "node20",
		outfile: program,
	});
	return program;
}

let vsock: string | undefined;

/** The environment of every `ch-qemu` that the tests start: the back end is built when its sources changed. */
function environment(): Record<string, string> {
	vsock ??= join(
		execFileSync(join(repository, "ch-qemu/build-vsock.sh"), { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] }).trim(),
		"ch-qemu-vsock",
	);
	return { CH_QEMU_VSOCK: vsock };
}

/** Resolves as `promise` does; rejects when nothing happened for a minute. */
export async function soon<T>(what: string, promise: Promise<T>): Promise<T> {
	let timer: NodeJS.Timeout | undefined;
	const late = new Promise<never>((_, reject) => {
		timer = setTimeout(() => reject(new Error(`waited in vain for ${what}`)), WAIT_LIMIT_MS);
	});
	try {
		return await Promise.race([promise, late]);
	} finally {
		clearTimeout(timer);
	}
}

/** Runs the program to its end and returns what it said. */
export async function run(
	args: readonly string[],
	env: Record<string, string> = environment(),
): Promise<Ended & { out: string; err: string }> {
	const child = spawn(process.execPath, [bundle(), ...args], { env, stdio: ["ignore", "pipe", "pipe"] });
	let out = "";
	let err = "";
	child.stdout.on("data", (text: Buffer) => (out += text));
	child.stderr.on("data", (text: Buffer) => (err += text));
	const ended = await soon(
		"the program's end",
		new Promise<Ended>((resolve) => child.once("close", (code, signal) => resolve({ code, signal }))),
	);
	return { ...ended, out, err };
}

/** One `ch-qemu` with a folder of its own. */
export class Vmm {
	readonly folder: string;
	readonly process: ChildProcess;
	readonly ended: Promise<Ended>;
	readonly api: string;

	private constructor(folder: string, wrapper: readonly string[]) {
		this.folder = folder;
		this.api = join(folder, "api.sock");
		const command = [
			...wrapper,
			process.execPath,
			bundle(),
			"--api-socket",
			`path=${this.api}`,
			"--event-monitor",
			`path=${folder}/events`,
			"-vv",
			"--log-file",
			`${folder}/log`,
		];
		this.process = spawn(command[0] ?? "", command.slice(1), { env: environment(), stdio: ["ignore", "ignore", "inherit"] });
		this.ended = new Promise((resolve) => this.process.once("close", (code, signal) => resolve({ code, signal })));
	}

	/** Starts one whose sockets are in `folder`; resolves when the API answers. `wrapper` is put in front of the command. */
	static async start(folder: string, wrapper: readonly string[] = []): Promise<Vmm> {
		const vmm = new Vmm(folder, wrapper);
		await appears(vmm.api, vmm.ended);
		// The socket is bound before it listens.
		while ((await vmm.get("vmm.ping")).status === 0)
			if (vmm.process.exitCode !== null) throw new Error(`the program ended: ${vmm.process.exitCode}`);
		return vmm;
	}

	request(method: string, path: string, body?: unknown, fds: readonly number[] = []): Promise<Answer> {
		return request(this.api, method, path, body, fds);
	}

	put(endpoint: string, body?: unknown): Promise<Answer> {
		return request(this.api, "PUT", `/api/v1/${endpoint}`, body);
	}

	get(endpoint: string): Promise<Answer> {
		return request(this.api, "GET", `/api/v1/${endpoint}`);
	}

	/** The names of all events so far, `source event`. */
	events(): string[] {
		return this.eventObjects().map((event) => `${event.source} ${event.event}`);
	}

	eventObjects(): { source: string; event: string; properties: Record<string, string> | null }[] {
		const text = readFileSync(join(this.folder, "events"), "utf8");
		return text
			.split("\n\n")
			.filter((part) => part.trim() !== "")
			.map((part) => JSON.parse(part));
	}

	/** Resolves when an event that `wanted` knows is there. */
	async event(
		what: string,
		wanted: (event: { source: string; event: string; properties: Record<string, string> | null }) => boolean,
	): Promise<void> {
		await fileHolds(join(this.folder, "events"), what, () => this.eventObjects().some(wanted));
	}

	/** Resolves when the guest has let devices of this id go so many times. */
	async removed(id: string, times: number): Promise<void> {
		const gone = (): number =>
			this.eventObjects().filter(({ event, properties }) => event === "device-removed" && properties?.["id"] === id).length;
		await fileHolds(join(this.folder, "events"), `the removal of ${id}`, () => gone() >= times);
	}

	/** Resolves when the guest has written READY on its serial port `count` times. */
	async ready(count = 1): Promise<void> {
		await fileHolds(join(this.folder, "serial"), "the guest's READY", (text) => text.split("READY").length > count);
	}

	/** Ends it whatever its state, and returns how it ended. */
	async kill(): Promise<Ended> {
		this.process.kill("SIGKILL");
		return soon("the VMM's death", this.ended);
	}
}

/** A folder whose name leaves room for sockets (their paths have at most 107 bytes), removed after the test. */
export function shortFolder(t: Test): string {
	const folder = mkdtempSync(join(tmpdir(), "chq-"));
	t.teardown(() => rmSync(folder, { recursive: true, force: true }));
	return folder;
}

/** A configuration that boots the test guest: vsock and serial port in `folder`. */
export function vmConfig(folder: string, more: Record<string, unknown> = {}): Record<string, unknown> {
	return {
		payload: { kernel: guestKernel(), initramfs: guestInitramfs(), cmdline: COMMAND_LINE },
		cpus: { boot_vcpus: 1, max_vcpus: 1 },
		memory: { size: 256 * 1024 * 1024 },
		serial: { mode: "File", file: join(folder, "serial") },
		console: { mode: "Off" },
		vsock: { cid: 3, socket: join(folder, "vsock") },
		...more,
	};
}

/** One request on a connection of its own. A connection that closes without an answer gives status 0. */
export async function request(path: string, method: string, uri: string, body?: unknown, fds: readonly number[] = []): Promise<Answer> {
	const text = body === undefined ? "" : typeof body === "string" ? body : JSON.stringify(body);
	const headers = body === undefined ? "" : `Content-Type: application/json\r\nContent-Length: ${Buffer.byteLength(text)}\r\n`;
	return rawRequest(path, `${method} ${uri} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n${headers}\r\n${text}`, fds);
}

/** A connection whose first bytes have descriptors with them. */
function connectWithFds(path: string, bytes: Uint8Array, fds: readonly number[]): Socket {
	const fd = connectUnix(path);
	sendFds(fd, bytes, fds);
	return new Socket({ fd });
}

/** Sends bytes as they are, with descriptors if there are any, and reads one answer. */
export function rawRequest(path: string, bytes: string, fds: readonly number[] = []): Promise<Answer> {
	const none: Answer = { status: 0, reason: "", headers: {}, text: "", json: undefined };
	return soon(
		"an answer",
		new Promise((resolve) => {
			let got = "";
			const socket = fds.length > 0 ? connectWithFds(path, Buffer.from(bytes), fds) : createConnection(path, () => socket.write(bytes));
			const finish = (): void => {
				socket.destroy();
				resolve(parseAnswer(got) ?? none);
			};
			socket.on("data", (chunk: Buffer) => {
				got += chunk.toString("latin1");
				if (parseAnswer(got) !== undefined) finish();
			});
			socket.on("error", finish);
			socket.on("close", finish);
		}),
	);
}

/** Reads an answer; undefined while it is not complete. */
export function parseAnswer(text: string): Answer | undefined {
	const end = text.indexOf("\r\n\r\n");
	if (end < 0) return undefined;
	const [first = "", ...lines] = text.slice(0, end).split("\r\n");
	const [, status = "0", ...reason] = first.split(" ");
	const headers = Object.fromEntries(
		lines.map((line) => [line.slice(0, line.indexOf(":")).trim(), line.slice(line.indexOf(":") + 1).trim()]),
	);
	const body = Buffer.from(text.slice(end + 4), "latin1");
	const length = Number(headers["Content-Length"] ?? 0);
	if (body.length < length) return undefined;
	const content = body.subarray(0, length).toString("utf8");
	let json: unknown;
	try {
		json = content === "" ? undefined : JSON.parse(content);
	} catch {
		json = undefined;
	}
	return { status: Number(status), reason: reason.join(" "), headers, text: content, json };
}

/** Resolves when the file `path` is there; rejects when the program that should make it ended. */
async function appears(path: string, ended: Promise<Ended>): Promise<void> {
	const folder = join(path, "..");
	const watcher = watch(folder);
	try {
		const there = new Promise<void>((resolve) => {
			watcher.on("change", () => existsSync(path) && resolve());
			if (existsSync(path)) resolve();
		});
		const gone = ended.then(({ code, signal }) => Promise.reject(new Error(`the program ended before it listened: ${code ?? signal}`)));
		await soon(path, Promise.race([there, gone]));
	} finally {
		watcher.close();
	}
}

/** Resolves when the file's text is as wanted, looked at whenever the file changes. */
export async function fileHolds(path: string, what: string, wanted: (text: string) => boolean): Promise<void> {
	const folder = join(path, "..");
	const watcher = watch(folder);
	try {
		await soon(
			what,
			new Promise<void>((resolve) => {
				const look = (): void => {
					if (existsSync(path) && wanted(readFileSync(path, "utf8"))) resolve();
				};
				watcher.on("change", look);
				look();
			}),
		);
	} finally {
		watcher.close();
	}
}

/** A connection to a port of the guest: what `CONNECT` was answered, and the stream behind it. Rejects when the guest refuses. */
export async function dial(path: string, port = 1024): Promise<{ socket: Socket; hostPort: number }> {
	const socket = createConnection({ path, allowHalfOpen: true });
	socket.write(`CONNECT ${port}\n`);
	const line = await soon(`CONNECT ${port}`, firstLine(socket));
	const ok = /^OK (\d+)$/.exec(line);
	if (ok === null) throw new Error(`CONNECT ${port} was answered '${line}'`);
	return { socket, hostPort: Number(ok[1]) };
}

function firstLine(socket: Socket): Promise<string> {
	return new Promise((resolve, reject) => {
		let got = Buffer.alloc(0);
		const take = (): void => {
			for (let chunk: Buffer | null = socket.read(1); chunk !== null; chunk = socket.read(1)) {
				if (chunk[0] === 10) {
					socket.off("readable", take);
					resolve(got.toString());
					return;
				}
				got = Buffer.concat([got, chunk]);
			}
		};
		socket.on("readable", take);
		socket.once("end", () => reject(new Error("the guest refused")));
		socket.once("error", reject);
	});
}

/** One command of the guest's program: sends the line, ends the own half if told, and returns everything that comes back. */
export async function ask(path: string, line: string, endOwnHalf = false): Promise<string> {
	const { socket } = await dial(path);
	socket.write(`${line}\n`);
	if (endOwnHalf) socket.end();
	const text = await soon(`the guest's answer to '${line}'`, everything(socket));
	socket.destroy();
	return text.toString();
}

/** Everything that a stream gives until its end. */
export async function everything(socket: Socket): Promise<Buffer> {
	const parts: Buffer[] = [];
	for await (const part of socket) parts.push(part as Buffer);
	return Buffer.concat(parts);
}
