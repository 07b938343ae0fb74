/** Child processes with a deadline on every wait and a bound on everything that is kept. */
import { spawn, type ChildProcessWithoutNullStreams } from "node:child_process";
import { once } from "node:events";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";

const KEPT_BYTES_MAX = 32 * 1024 * 1024;
const SHOWN_CHARACTERS_MAX = 2000;

/** What a process left when it ended. */
export type Finished = {
	readonly argv: readonly string[];
	/** Exit code, or null when a signal ended it. */
	readonly code: number | null;
	readonly signal: NodeJS.Signals | null;
	/** Standard output as text; empty when a sink took it. */
	readonly stdout: string;
	readonly stderr: string;
	readonly durationMs: number;
};

export type StartOptions = {
	readonly env?: NodeJS.ProcessEnv;
	readonly cwd?: string;
	/** Takes standard output chunk by chunk instead of keeping it. */
	readonly sink?: (chunk: Buffer) => void;
};

export type RunOptions = StartOptions & {
	/** Standard input: bytes or a stream; nothing (an empty input) when left out. */
	readonly stdin?: string | Buffer | Readable;
	/** Deadline in milliseconds, 30 s when left out; the process is killed when it passes. */
	readonly timeoutMs?: number;
};

/** The end of a text, short enough for an error message. */
export function tail(text: string): string {
	return text.length <= SHOWN_CHARACTERS_MAX ? text : `...${text.slice(-SHOWN_CHARACTERS_MAX)}`;
}

/** One running child with its collected output. The owner calls `kill` or waits for `finished`. */
export class Child {
	readonly argv: readonly string[];
	readonly process: ChildProcessWithoutNullStreams;
	readonly #startedMs = performance.now();
	readonly #done: Promise<Finished>;
	#stdout = "";
	#stderr = "";
	#ended = false;
	#overflowed = false;
	#listeners = new Set<() => void>();

	constructor(argv: readonly string[], options: StartOptions = {}) {
		const [program, ...args] = argv;
		if (program === undefined) throw new Error("no program given");
		this.argv = argv;
		this.process = spawn(program, args, { env: options.env ?? process.env, cwd: options.cwd, stdio: "pipe" });
		this.process.stdin.on("error", () => undefined);
		this.process.stdout.on("data", (chunk: Buffer) => {
			if (options.sink !== undefined) options.sink(chunk);
			else this.#stdout = this.#keep(this.#stdout, chunk);
			this.#notify();
		});
		this.process.stderr.on("data", (chunk: Buffer) => {
			this.#stderr = this.#keep(this.#stderr, chunk);
			this.#notify();
		});
		this.#done = this.#wait();
		this.#done.catch(() => undefined);
	}

	get stdout(): string {
		return this.#stdout;
	}

	get stderr(): string {
		return this.#stderr;
	}

	/** Process id in the caller's PID namespace. */
	get pid(): number {
		const { pid } = this.process;
		if (pid === undefined) throw new Error(`${this.argv[0]} did not start`);
		return pid;
	}

	/**
	 * Waits until a text is found in the output (standard output and standard error, in this order).
	 * @returns the match.
	 * @throws Error when the process ends or the deadline passes first.
	 */
	async waitForOutput(pattern: RegExp, timeoutMs: number): Promise<RegExpMatchArray> {
		const found = (): RegExpMatchArray | null => this.#stdout.match(pattern) ?? this.#stderr.match(pattern);
		await this.waitUntil(() => found() !== null, `output that matches ${pattern}`, timeoutMs);
		const match = found();
		if (match === null) throw new Error(`${this.argv[0]}: the match of ${pattern} vanished`);
		return match;
	}

	/** Waits until `condition`, looked at whenever output arrives, holds. */
	async waitUntil(condition: () => boolean, what: string, timeoutMs: number): Promise<void> {
		if (condition()) return;
		await new Promise<void>((resolve, reject) => {
			const finish = (error?: Error): void => {
				clearTimeout(timer);
				this.#listeners.delete(look);
				if (error === undefined) resolve();
				else reject(error);
			};
			const look = (): void => {
				if (condition()) finish();
				else if (this.#ended) finish(new Error(`${this.describe()} ended without ${what}`));
			};
			const timer = setTimeout(() => finish(new Error(`no ${what} from ${this.describe()} within ${timeoutMs} ms`)), timeoutMs);
			this.#listeners.add(look);
			look();
		});
	}

	/** Waits for the end of the process and of its output; kills it when the deadline passes. */
	async finished(timeoutMs: number): Promise<Finished> {
		let timer: NodeJS.Timeout | undefined;
		const deadline = new Promise<never>((_, reject) => {
			timer = setTimeout(() => {
				reject(new Error(`${this.describe()} did not end within ${timeoutMs} ms and was killed`));
				this.kill();
			}, timeoutMs);
		});
		try {
			return await Promise.race([this.#done, deadline]);
		} finally {
			clearTimeout(timer);
		}
	}

	/** Sends a signal; SIGKILL when none is named. No error when the process is gone. */
	kill(signal: NodeJS.Signals = "SIGKILL"): void {
		if (!this.#ended) this.process.kill(signal);
	}

	/** The command line with the end of its output, for error messages. */
	describe(): string {
		return describe(this.argv, this.#stdout, this.#stderr);
	}

	#keep(text: string, chunk: Buffer): string {
		if (text.length + chunk.length > KEPT_BYTES_MAX) {
			this.#overflowed = true;
			this.kill();
			return text;
		}
		// latin1 keeps every byte as one character, so that a character cut in two by a chunk's end does no harm.
		return text + chunk.toString("latin1");
	}

	#notify(): void {
		for (const listener of [...this.#listeners]) listener();
	}

	async #wait(): Promise<Finished> {
		try {
			const [code, signal] = (await once(this.process, "close")) as [number | null, NodeJS.Signals | null];
			if (this.#overflowed) throw new Error(`${this.argv.join(" ")} printed more than ${KEPT_BYTES_MAX} bytes: give it a sink`);
			return { argv: this.argv, code, signal, stdout: this.#stdout, stderr: this.#stderr, durationMs: performance.now() - this.#startedMs };
		} finally {
			this.#ended = true;
			this.#notify();
		}
	}
}

function describe(argv: readonly string[], stdout: string, stderr: string): string {
	return `\`${argv.join(" ").slice(0, 600)}\` (stdout: ${JSON.stringify(tail(stdout))}, stderr: ${JSON.stringify(tail(stderr))})`;
}

/** Runs a command to its end. The exit code is the caller's to judge; only a missed deadline or a failed start throws. */
export async function run(argv: readonly string[], options: RunOptions = {}): Promise<Finished> {
	const child = new Child(argv, options);
	const { stdin } = options;
	if (stdin === undefined || typeof stdin === "string" || Buffer.isBuffer(stdin)) child.process.stdin.end(stdin ?? "");
	// The child may stop reading early; its exit code tells what that means.
	else pipeline(stdin, child.process.stdin).catch(() => undefined);
	return await child.finished(options.timeoutMs ?? 30_000);
}

/** Runs a command that must succeed. @throws Error with its output when the exit code is not 0. */
export async function runOk(argv: readonly string[], options: RunOptions = {}): Promise<Finished> {
	const finished = await run(argv, options);
	if (finished.code !== 0) {
		throw new Error(`exit code ${finished.code ?? finished.signal} of ${describe(argv, finished.stdout, finished.stderr)}`);
	}
	return finished;
}
