/** Runs programs for the scripts: output is shown as it comes and kept. */

import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import process from "node:process";

/** The repository's root folder. */
export const REPOSITORY = fileURLToPath(new URL("..", import.meta.url));

/** How a program ended. */
export interface Ended {
	readonly ok: boolean;
	/** Standard output and standard error, as they came. */
	readonly output: string;
}

/** How a program is run. */
export interface CommandOptions {
	/** It is killed after this time. */
	readonly timeoutMs: number;
	readonly env?: NodeJS.ProcessEnv;
	/** Keeps the output to itself unless the program fails. */
	readonly quiet?: boolean;
}

/** Runs a program in the repository's root, with no standard input. A program that can't be started counts as failed. */
export function run(program: string, args: readonly string[], options: CommandOptions): Promise<Ended> {
	return new Promise((resolve) => {
		const child = spawn(program, args, {
			cwd: REPOSITORY,
			stdio: ["ignore", "pipe", "pipe"],
			env: { ...process.env, ...options.env },
			timeout: options.timeoutMs,
			killSignal: "SIGKILL",
		});
		const parts: string[] = [];
		const take = (text: string): void => {
			parts.push(text);
			if (options.quiet !== true) process.stdout.write(text);
		};
		child.stdout.setEncoding("utf8").on("data", take);
		child.stderr.setEncoding("utf8").on("data", take);
		const end = (ok: boolean): void => {
			const output = parts.join("");
			if (!ok && options.quiet === true) process.stdout.write(output);
			resolve({ ok, output });
		};
		child.once("error", (error) => {
			take(`${program} can't be run: ${error.message}\n`);
			end(false);
		});
		child.once("close", (code, signal) => {
			if (signal !== null) take(`${program} was ended by ${signal}, after ${options.timeoutMs} ms or from outside\n`);
			end(code === 0);
		});
	});
}
