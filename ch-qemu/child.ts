/** Child processes that die with this program, whatever ends it. */
import { type ChildProcess, spawn, type StdioOptions } from "node:child_process";
import { DEFAULT_PATH } from "./tools.ts";

/** How a child ended: its exit code or the signal's name. */
export type ChildEnd = { readonly code: number | null; readonly signal: string | null };

/**
 * The command that starts a child on a leash: the kernel kills it when our main thread ends (`PR_SET_PDEATHSIG`, kept over exec).
 * The shell behind it closes the gap: had we died before the leash was on, its parent is not us any more, and it starts nothing.
 */
const CHECK_PARENT = '[ "$PPID" = "$0" ] || exit 125; exec "$@"';

/** One running child. `ended` resolves when it is gone; it never rejects. */
export class Child {
	readonly process: ChildProcess;
	readonly ended: Promise<ChildEnd>;
	readonly name: string;
	#complaints = "";

	/** Starts `command` (an absolute path and its arguments). `stdio` as in `child_process.spawn`; when the third entry is a pipe its text is kept. */
	constructor(leash: readonly string[], command: readonly string[], stdio: StdioOptions) {
		const [setpriv = "", ...options] = leash;
		this.name = command[0] ?? "";
		this.process = spawn(setpriv, [...options, "/bin/sh", "-c", CHECK_PARENT, String(process.pid), ...command], {
			stdio,
			env: { PATH: DEFAULT_PATH },
			cwd: "/",
		});
		this.process.stderr?.on("data", (text: Buffer) => {
			this.#complaints = (this.#complaints + text.toString()).slice(-COMPLAINTS_MAX_CHARS);
		});
		this.ended = new Promise((resolve) => {
			this.process.once("error", (error) => {
				this.#complaints += error.message;
				resolve({ code: null, signal: null });
			});
			this.process.once("close", (code, signal) => resolve({ code, signal }));
		});
	}

	/** The end of what the child wrote to its standard error. */
	get complaints(): string {
		return this.#complaints.trim();
	}

	/** Kills the child and waits until it is gone. */
	async kill(): Promise<void> {
		this.process.kill("SIGKILL");
		await this.ended;
	}
}

const COMPLAINTS_MAX_CHARS = 8192;

/** Resolves as `promise` does, or rejects with `message` after `limitMs`. */
export async function within<T>(limitMs: number, message: string, promise: Promise<T>): Promise<T> {
	let timer: NodeJS.Timeout | undefined;
	const late = new Promise<never>((_, reject) => {
		timer = setTimeout(() => reject(new Error(`${message} (no answer for ${limitMs} ms)`)), limitMs);
	});
	try {
		return await Promise.race([promise, late]);
	} finally {
		clearTimeout(timer);
	}
}
