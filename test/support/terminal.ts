/** A command on a real pseudo-terminal, through script(1): input, size changes, and what it shows. */
import { Child, runOk, type Finished } from "./process.ts";
import { eventually } from "./retry.ts";

const START_TIMEOUT_MS = 10_000;

function shellQuoted(argv: readonly string[]): string {
	return argv.map((arg) => `'${arg.replaceAll("'", "'\\''")}'`).join(" ");
}

/** One command on its own terminal. Its owner waits for `finished` or calls `kill`. */
export class Terminal {
	readonly #child: Child;
	readonly #device: string;

	private constructor(child: Child, device: string) {
		this.#child = child;
		this.#device = device;
	}

	/** Starts a command on a terminal of the given size; script(1) passes its exit code on. */
	static async start(argv: readonly string[], rows: number, columns: number): Promise<Terminal> {
		const child = new Child([
			"script",
			"--quiet",
			"--return",
			"--command",
			`tty; stty rows ${rows} cols ${columns}; exec ${shellQuoted(argv)}`,
			"/dev/null",
		]);
		try {
			const [, device = ""] = await child.waitForOutput(/(\/dev\/pts\/\d+)\r?\n/, START_TIMEOUT_MS);
			return new Terminal(child, device);
		} catch (error) {
			child.kill();
			throw error;
		}
	}

	/** Everything shown so far, carriage returns taken out. */
	get shown(): string {
		return this.#child.stdout.replaceAll("\r", "");
	}

	/** Types text. */
	type(text: string): void {
		this.#child.process.stdin.write(text);
	}

	/** Gives the terminal another size; the kernel tells its foreground process by SIGWINCH. */
	async resize(rows: number, columns: number): Promise<void> {
		await runOk(["stty", "-F", this.#device, "rows", String(rows), "cols", String(columns)]);
	}

	/**
	 * Gives the terminal another size until a text shows that it has arrived: ctr takes its first size and only then listens for changes, so that a change in between is lost on it.
	 */
	async resizeUntilShown(rows: number, columns: number, pattern: RegExp, timeoutMs: number): Promise<void> {
		await eventually(`${pattern} after a resize to ${rows} x ${columns} on ${this.#child.describe()}`, timeoutMs, async () => {
			if (pattern.test(this.shown)) return true;
			await this.resize(rows + 1, columns);
			await this.resize(rows, columns);
			return undefined;
		});
	}

	/** Waits until the terminal has shown a text. */
	async waitForOutput(pattern: RegExp, timeoutMs: number): Promise<void> {
		await this.#child.waitForOutput(pattern, timeoutMs);
	}

	async finished(timeoutMs: number): Promise<Finished> {
		return await this.#child.finished(timeoutMs);
	}

	kill(): void {
		this.#child.kill();
	}
}
