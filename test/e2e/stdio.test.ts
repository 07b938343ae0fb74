/** Bytes in and out of a container: nothing lost, nothing changed, terminals. Alike on the shim and on runc. */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Readable } from "node:stream";
import { EventStream } from "../support/events.ts";
import { runCases, type Bed, type Case } from "../support/fixture.ts";
import { Child, runOk } from "../support/process.ts";
import { isDaemon } from "../support/leftovers.ts";
import { descriptorsOf } from "../support/procfs.ts";
import { eventually } from "../support/retry.ts";
import { Terminal } from "../support/terminal.ts";

const MIB = 1024 * 1024;
const WAIT_MS = 60_000;
const BULK_TIMEOUT_MS = 180_000;
const STDIN_BYTES = 64 * MIB;
/** Each block is its number's line and then the numbers from 1 to this one. */
const BLOCK_LINES = 300_000;
const STDOUT_BYTES_MIN = 256 * MIB;

/** Bytes without a pattern, the same in each run: SHA-256 over a counter, 64 KiB at a time. */
function* noise(bytes: number): Generator<Buffer> {
	const chunkBytes = 64 * 1024;
	const seed = Buffer.alloc(chunkBytes);
	for (let at = 0; at < chunkBytes; at += 32) createHash("sha256").update(String(at)).digest().copy(seed, at);
	for (let n = 0; n * chunkBytes < bytes; n++) {
		const chunk = Buffer.from(seed);
		// Chunks differ in their numbers, so that a lost, doubled or exchanged one changes the hash.
		for (let at = 0; at < chunkBytes; at += 4096) chunk.writeUInt32LE(n, at);
		yield chunk;
	}
}

function numberedBlock(): Buffer {
	let text = "";
	for (let n = 1; n <= BLOCK_LINES; n++) text += `${n}\n`;
	return Buffer.from(text);
}

/** Takes a stream's chunks, keeps their hash and their number. */
class Digest {
	readonly #hash = createHash("sha256");
	bytes = 0;
	readonly update = (chunk: Buffer): void => {
		this.#hash.update(chunk);
		this.bytes += chunk.length;
	};
	hex(): string {
		return this.#hash.digest("hex");
	}
}

/** More than FIFO and reader take of themselves, and little enough for the rest to wait outside of the process, which can end. */
const REST_BYTES = 640 * 1024;
/** What a `StalledPipe` has (its pipe and ctr's buffer take 96 KiB), and 32 KiB more: they stay in the FIFO, and nothing before it. */
const LITTLE_BYTES = 128 * 1024;
/** Enough for what must not wait for a reader, and less than a reader that takes nothing is given. */
const SOON_MS = 30_000;

/** Prints when it is told (`ctr exec` of `touch`), since a detached client reads as long as it lives. */
const PRINTING_LATE = ["sh", "-c", `until rm /tmp/go 2> /dev/null; do sleep 0.1; done; head -c ${REST_BYTES} /dev/zero; exit 3`];
const GO = ["touch", "/tmp/go"];

function printing(bytes: number): string[] {
	return ["sh", "-c", `head -c ${bytes} /dev/zero; exit 3`];
}

/** Runs `check` with pods whose output may hold back an exit for a moment only. */
async function withShortDrain(bed: Bed, check: (events: EventStream) => Promise<void>): Promise<void> {
	await bed.containerd.configure({ append: "stdio_drain_ms = 200" });
	const events = await EventStream.open(bed.ctr, bed.image.name);
	try {
		await check(events);
	} finally {
		events.stop();
		await bed.containerd.configure({});
	}
}

/** How often snpd has said that the end of the process `name` waits for a reader. */
function heldEnds(bed: Bed, name: string): number {
	const log = readFileSync(bed.containerd.seen(join(bed.containerd.stateDir, "snpd.log")), "utf8");
	return log.split("\n").filter((line) => line.includes("waits for the reader of its last output") && line.includes(name)).length;
}

async function endIsHeld(bed: Bed, name: string, before: number): Promise<void> {
	await eventually(`the end of ${name} waits`, WAIT_MS, () => (heldEnds(bed, name) > before ? true : undefined));
}

function killSnpd(bed: Bed): void {
	const snpd = bed.containerd.processes().find(isDaemon);
	if (snpd === undefined) throw new Error("no snpd runs");
	process.kill(snpd.pid, "SIGKILL");
}

/** A reader of its own at the FIFO of a detached process (`name` is its id), which takes no more than its pipes hold until `finish`. */
class StalledReader {
	readonly #received = new Digest();
	readonly #child: Child;

	private constructor(fifo: string) {
		this.#child = new Child(["cat", fifo], { sink: this.#received.update });
		this.#child.process.stdout.pause();
	}

	static async open(bed: Bed, name: string): Promise<StalledReader> {
		const dir = bed.containerd.fifoDir;
		const file = readdirSync(dir, { recursive: true, encoding: "utf8" }).find((path) => path.endsWith(`/${name}-stdout`));
		if (file === undefined) throw new Error(`no FIFO of ${name} in ${dir}`);
		const fifo = join(dir, file);
		const reader = new StalledReader(fifo);
		const { pid } = reader.#child;
		await eventually("the reader", WAIT_MS, () => (descriptorsOf(pid).includes(fifo) ? true : undefined));
		return reader;
	}

	/** Reads to the end. @returns how many bytes came */
	async finish(): Promise<number> {
		this.#child.process.stdout.resume();
		await this.#child.finished(WAIT_MS);
		return this.#received.bytes;
	}

	kill(): void {
		this.#child.kill();
	}
}

/** A client of containerd in a shell's pipeline, whose next program does not begin to read until `finish`. */
class StalledPipe {
	readonly #received = new Digest();
	readonly #child: Child;

	constructor(argv: readonly string[]) {
		const script = '{ "$@" < /dev/null; echo "code $?" >&2; } 3<&- | { read -r go <&3; cat; }';
		this.#child = new Child(["sh", "-c", `exec 3<&0; ${script}`, "sh", ...argv], { sink: this.#received.update });
	}

	/** Reads to the end. @returns how many bytes came, and the client's exit code */
	async finish(): Promise<{ bytes: number; code: string | undefined }> {
		this.#child.process.stdin.end("go\n");
		const { stderr } = await this.#child.finished(WAIT_MS);
		return { bytes: this.#received.bytes, code: /code (\d+)/u.exec(stderr)?.[1] };
	}

	kill(): void {
		this.#child.kill();
	}
}

const cases: Case[] = [
	{
		name: "ctr, stalled beyond stdio_drain_ms, loses nothing and gets the exit code: run and exec",
		vmOnly: true,
		check: async (t, bed) => {
			const { ctr } = bed;
			await withShortDrain(bed, async () => {
				const id = ctr.newId("stall");
				const other = ctr.newId("host");
				await ctr.detach(other, ["sleep", "1000"]);
				for (const bytes of [REST_BYTES, LITTLE_BYTES]) {
					const command = printing(bytes);
					for (const [name, argv] of [
						[`container ${id}`, ctr.runArgv(id, command, { flags: ["--rm"] })],
						[`of container ${other}`, ctr.execArgv(other, command)],
					] as const) {
						const before = heldEnds(bed, name);
						const stalled = new StalledPipe(argv);
						try {
							await endIsHeld(bed, name, before);
							t.strictSame(await stalled.finish(), { bytes, code: "3" }, name);
						} finally {
							stalled.kill();
						}
					}
				}
				await ctr.remove(other);
			});
		},
	},
	{
		name: "ctr, stalled beyond stdio_drain_ms, loses nothing when snpd is killed meanwhile",
		vmOnly: true,
		check: async (t, bed) => {
			const { ctr } = bed;
			await withShortDrain(bed, async () => {
				const id = ctr.newId("stall");
				const name = `container ${id}`;
				const stalled = new StalledPipe(ctr.runArgv(id, printing(REST_BYTES), { flags: ["--rm"] }));
				try {
					await endIsHeld(bed, name, 0);
					killSnpd(bed);
					await endIsHeld(bed, name, 1);
					t.strictSame(await stalled.finish(), { bytes: REST_BYTES, code: "3" });
				} finally {
					stalled.kill();
				}
			});
		},
	},
	{
		name: "a reader that stalls for ever does not outlive SIGKILL: container",
		vmOnly: true,
		check: async (t, bed) => {
			const { ctr } = bed;
			await withShortDrain(bed, async (events) => {
				for (const force of [false, true]) {
					const id = ctr.newId("stuck");
					await runOk(ctr.runArgv(id, PRINTING_LATE, { flags: ["--detach"] }), { timeoutMs: WAIT_MS });
					const reader = await StalledReader.open(bed, id);
					try {
						await ctr.exec(id, GO);
						await endIsHeld(bed, `container ${id}`, 0);
						t.equal(await ctr.status(id), "RUNNING");
						if (!force) {
							await ctr.kill(id, "SIGKILL");
							const exit = await events.waitFor(
								`exit of ${id}`,
								SOON_MS,
								({ topic, fields }) => topic === "/tasks/exit" && fields["id"] === id,
							);
							t.equal(exit.fields["exit_status"], 3);
						}
						await ctr.callOk(["task", "rm", ...(force ? ["--force"] : []), id]);
						t.equal(await ctr.status(id), undefined);
					} finally {
						reader.kill();
					}
					await ctr.callOk(["container", "rm", id]);
				}
			});
		},
	},
	{
		name: "a reader that stalls for ever does not outlive SIGKILL, and what is left after Delete stays its own: exec, also when snpd is killed meanwhile",
		vmOnly: true,
		check: async (t, bed) => {
			const { ctr } = bed;
			await withShortDrain(bed, async (events) => {
				const id = ctr.newId("stuck");
				await ctr.detach(id, ["sleep", "1000"]);
				for (const killed of [false, true]) {
					const argv = ctr.execArgv(id, PRINTING_LATE, ["--detach"]);
					const execId = argv[argv.indexOf("--exec-id") + 1] ?? "";
					await runOk(argv, { timeoutMs: WAIT_MS });
					const reader = await StalledReader.open(bed, execId);
					try {
						await ctr.exec(id, GO);
						await endIsHeld(bed, `exec ${execId} `, 0);
						await ctr.kill(id, "SIGKILL", ["--exec-id", execId]);
						await events.waitFor(`exit of ${execId}`, SOON_MS, ({ topic, fields }) => topic === "/tasks/exit" && fields["id"] === execId);
						if (killed) killSnpd(bed);
						t.equal((await ctr.call(["task", "rm", "--exec-id", execId, id])).code, 3);
						t.equal(await reader.finish(), REST_BYTES);
					} finally {
						reader.kill();
					}
				}
				await ctr.remove(id);
			});
		},
	},
	{
		name: "the end of an exec is told when another process holds its output, or nobody reads it",
		vmOnly: true,
		check: async (t, bed) => {
			const { ctr } = bed;
			await withShortDrain(bed, async (events) => {
				const id = ctr.newId("quiet");
				await ctr.detach(id, ["sleep", "1000"]);
				for (const script of ["sleep 1000 & exit 3", `head -c ${REST_BYTES} /dev/zero; exit 3`]) {
					const argv = ctr.execArgv(id, ["sh", "-c", script], ["--detach"]);
					const execId = argv[argv.indexOf("--exec-id") + 1] ?? "";
					await runOk(argv, { timeoutMs: WAIT_MS });
					const reader = script.startsWith("sleep") ? await StalledReader.open(bed, execId) : undefined;
					try {
						await events.waitFor(`exit of ${execId}`, SOON_MS, ({ topic, fields }) => topic === "/tasks/exit" && fields["id"] === execId);
						t.equal((await ctr.call(["task", "rm", "--exec-id", execId, id])).code, 3);
					} finally {
						reader?.kill();
					}
				}
				await ctr.remove(id);
			});
		},
	},
	{
		name: "64 MiB of standard input come back bit for bit",
		// runc's shim drops what its FIFO still holds when ctr announces the end of the input.
		vmOnly: true,
		check: async (t, { ctr }) => {
			const sent = new Digest();
			const received = new Digest();
			const source = Readable.from(
				(function* () {
					for (const chunk of noise(STDIN_BYTES)) {
						sent.update(chunk);
						yield chunk;
					}
				})(),
			);
			const finished = await ctr.run(ctr.newId("echo"), ["cat"], { stdin: source, sink: received.update, timeoutMs: BULK_TIMEOUT_MS });
			t.equal(finished.code, 0, finished.stderr);
			t.equal(received.bytes, STDIN_BYTES);
			t.equal(received.hex(), sent.hex());
			t.comment(`${(STDIN_BYTES / MIB / (finished.durationMs / 1000)).toFixed(0)} MiB/s each way, start included`);
		},
	},
	{
		name: "256 MiB of standard output are whole when the container has ended at once after them",
		check: async (t, { ctr }) => {
			const block = numberedBlock();
			const blocks = Math.ceil(STDOUT_BYTES_MIN / block.length);
			const expected = new Digest();
			for (let n = 1; n <= blocks; n++) {
				expected.update(Buffer.from(`block ${n}\n`));
				expected.update(block);
			}
			const received = new Digest();
			const script = `seq 1 ${BLOCK_LINES} > /tmp/block; n=1; while [ $n -le ${blocks} ]; do echo block $n; cat /tmp/block; n=$((n+1)); done; exit 5`;
			const finished = await ctr.run(ctr.newId("flood"), ["sh", "-c", script], { sink: received.update, timeoutMs: BULK_TIMEOUT_MS });
			t.equal(finished.code, 5, finished.stderr);
			t.equal(received.bytes, expected.bytes);
			t.equal(received.hex(), expected.hex());
			t.comment(`${(received.bytes / MIB / (finished.durationMs / 1000)).toFixed(0)} MiB/s, start included`);
		},
	},
	{
		name: "a reader that is slow holds the container back and loses nothing; error output goes on meanwhile",
		check: async (t, { ctr }) => {
			const received = new Digest();
			const child = ctr.attach(ctr.newId("slow"), ["sh", "-c", "head -c 8388608 /dev/zero & echo still here >&2; wait"], {
				flags: ["--rm"],
				sink: received.update,
			});
			try {
				child.process.stdin.end();
				child.process.stdout.pause();
				await child.waitForOutput(/still here/, WAIT_MS);
				child.process.stdout.resume();
				t.equal((await child.finished(WAIT_MS)).code, 0);
				t.equal(received.bytes, 8 * MIB);
			} finally {
				child.kill();
			}
		},
	},
	{
		name: "the end of standard input ends the reader, in the container and in an exec",
		check: async (t, { ctr }) => {
			const id = ctr.newId("eof");
			const child = ctr.attach(id, ["sh", "-c", "echo ready; n=$(wc -c); echo main read $n; sleep 1000"], { flags: ["--rm"] });
			try {
				await child.waitForOutput(/ready/, WAIT_MS);
				const exec = await ctr.exec(id, ["wc", "-c"], { stdin: "x".repeat(1000) });
				t.equal(exec.stdout.trim(), "1000");
				child.process.stdin.end("12345");
				await child.waitForOutput(/main read 5/, WAIT_MS);
				await ctr.kill(id, "SIGKILL");
				t.equal((await child.finished(WAIT_MS)).stdout, "ready\nmain read 5\n");
			} finally {
				child.kill();
			}
		},
	},
	{
		name: "output of a process that outlives the container's main process is not waited for by exec",
		check: async (t, { ctr }) => {
			const id = ctr.newId("orphan");
			await ctr.detach(id, ["sleep", "1000"]);
			const exec = await ctr.exec(id, ["sh", "-c", "sleep 1000 > /dev/null 2>&1 & echo done"]);
			t.strictSame([exec.stdout, exec.code], ["done\n", 0]);
			await ctr.remove(id);
		},
	},
	{
		name: "terminal: size, resizing, input, control characters and the exit code",
		check: async (t, { ctr }) => {
			const argv = ctr.runArgv(
				ctr.newId("tty"),
				[
					"sh",
					"-c",
					"trap 'echo resized to $(stty size)' WINCH; trap 'echo interrupted; exit 6' INT; tty -s && echo is a tty; stty size; echo ready; while :; do sleep 0.1; done",
				],
				{ flags: ["--rm", "--tty"] },
			);
			const terminal = await Terminal.start(argv, 33, 99);
			try {
				await terminal.waitForOutput(/is a tty/, WAIT_MS);
				await terminal.waitForOutput(/ready/, WAIT_MS);
				await terminal.resizeUntilShown(44, 121, /resized to 44 121/, WAIT_MS);
				terminal.type("\x03");
				await terminal.waitForOutput(/interrupted/, WAIT_MS);
				t.equal((await terminal.finished(WAIT_MS)).code, 6);
			} finally {
				terminal.kill();
			}
		},
	},
	{
		name: "terminal of an exec: typed lines reach the shell, its exit code comes back",
		check: async (t, { ctr }) => {
			const id = ctr.newId("shell");
			await ctr.detach(id, ["sleep", "1000"]);
			const terminal = await Terminal.start(ctr.execArgv(id, ["sh"], ["--tty"]), 24, 80);
			try {
				await terminal.waitForOutput(/[#$] /, WAIT_MS);
				terminal.type("until [ \"$(stty size)\" = '50 132' ]; do sleep 0.1; done; echo $((6*7)) is it\n");
				await terminal.resizeUntilShown(50, 132, /42 is it/, WAIT_MS);
				terminal.type("exit 11\n");
				t.equal((await terminal.finished(WAIT_MS)).code, 11);
			} finally {
				terminal.kill();
			}
			await ctr.remove(id);
		},
	},
	{
		name: "a log file instead of FIFOs takes the output",
		// runc's shim may end before it has copied the last lines.
		vmOnly: true,
		check: async (t, { ctr, containerd }) => {
			const id = ctr.newId("log");
			const file = `${containerd.rootDir}/${id}.log`;
			await runOk(ctr.runArgv(id, ["sh", "-c", "echo one; echo two >&2"], { flags: ["--detach", "--log-uri", `file://${file}`] }), {
				timeoutMs: WAIT_MS,
			});
			await eventually("the end of the container", WAIT_MS, async () => ((await ctr.status(id)) === "STOPPED" ? true : undefined));
			t.strictSame(readFileSync(file, "utf8").split("\n").sort(), ["", "one", "two"]);
			await ctr.remove(id);
		},
	},
];

await runCases(cases, { withControl: true });
