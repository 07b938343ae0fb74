/** What every demo shares: how it speaks, how a scene fails, and the private containerd that it plays on. */
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { PrivateContainerd } from "../../test/support/containerd.ts";
import type { Leftovers } from "../../test/support/leftovers.ts";
import type { Step } from "../../test/support/timeline.ts";

const BAR_COLUMNS = 40;

const coloured = process.stdout.isTTY && process.env["NO_COLOR"] === undefined;

/** A title. */
export const bold = (text: string): string => (coloured ? `\x1b[1m${text}\x1b[0m` : text);
/** An aside. */
export const dim = (text: string): string => (coloured ? `\x1b[2m${text}\x1b[0m` : text);
/** What was found out. */
export const green = (text: string): string => (coloured ? `\x1b[32m${text}\x1b[0m` : text);

/** Prints one line. */
export function say(line = ""): void {
	process.stdout.write(`${line}\n`);
}

/** Prints one finding: what it is, and its value. */
export function tell(what: string, value: string): void {
	say(`  ${what.padEnd(25)} ${green(value)}`);
}

/** The text of anything that was thrown. */
export function textOf(error: unknown): string {
	return error instanceof Error ? error.message : String(error);
}

/** One scene of a demo: its title is shown first, and named when it fails. */
export async function scene<T>(title: string, play: () => Promise<T>): Promise<T> {
	say(bold(title));
	try {
		return await play();
	} catch (error) {
		throw new Error(`${title}: ${textOf(error)}`, { cause: error });
	}
}

/** Prints a pod's steps with bars that show when each ran. */
export function showTimeline(steps: readonly Step[]): void {
	if (steps.length === 0) throw new Error("the timeline has no steps");
	const endMs = Math.max(1, ...steps.map((step) => step.startMs + step.durationMs));
	const nameWidth = Math.max(...steps.map((step) => step.step.length));
	for (const { step, startMs, durationMs } of steps) {
		const offset = Math.min(BAR_COLUMNS - 1, Math.floor((startMs / endMs) * BAR_COLUMNS));
		const length = Math.max(1, Math.round((durationMs / endMs) * BAR_COLUMNS));
		const bar = `${" ".repeat(offset)}${"=".repeat(Math.min(length, BAR_COLUMNS - offset))}`.padEnd(BAR_COLUMNS);
		say(`  ${step.padEnd(nameWidth)} ${`${startMs.toFixed(0)} ms`.padStart(8)} ${dim("|")}${bar}${dim("|")} ${durationMs.toFixed(1)} ms`);
	}
}

/** The last scene: fails when anything is left of what was there before. */
export async function showNothingLeft(leftovers: Leftovers): Promise<void> {
	const left = await leftovers.settle();
	if (left.length > 0) throw new Error(`something is left behind:\n  ${left.join("\n  ")}`);
	say(`  ${green("nothing")}: no process, mount, link, socket, cgroup or journal entry`);
}

/** Plays on a containerd; when a scene fails the logs are kept and their folder is named. */
export async function keepLogsOnFailure(containerd: PrivateContainerd, play: () => Promise<void>): Promise<void> {
	try {
		await play();
	} catch (error) {
		const dir = await mkdtemp(join(tmpdir(), "snp-demo-logs-"));
		await containerd.keepLogs(dir);
		throw new Error(`${textOf(error)}\nThe logs are in ${dir}`, { cause: error });
	}
}
