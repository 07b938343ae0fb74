/** How a process's end comes to be known: its exit, then its last output, then what depends on it. */

import { explain } from "../base/errors.ts";
import { withDeadline } from "../base/deadline.ts";
import { listen, raceLasting } from "../base/lasting.ts";
import type { Log } from "../base/log.ts";
import type { ContainerStdio } from "./container-stdio.ts";
import type { Machine } from "./machine.ts";
import { SIGKILL, SIGNAL_EXIT_BASE } from "./process.ts";
import type { ExitRecord, GuestProcess } from "./process.ts";

/** How long the exits of execs may hold back the exit of their container. */
const EXEC_EXITS_MS = 2_000;

/** What is waited for. */
export interface EndOptions {
	readonly machine: Machine;
	readonly stdio: ContainerStdio;
	readonly log: Log;
	/** The VM has ended with the process. */
	readonly onDeath: () => void;
}

/**
 * Waits for a process's end, then for its output to be read. Output that takes too long is moved on, until Delete and after it. Never rejects for what
 * the guest does.
 */
export async function processEnd(process: GuestProcess, options: EndOptions): Promise<ExitRecord> {
	const forget = listen(options.machine.died, options.onDeath);
	try {
		return await exitAndOutput(process, options);
	} finally {
		forget();
	}
}

async function exitAndOutput(process: GuestProcess, { machine, stdio, log }: EndOptions): Promise<ExitRecord> {
	const waited = stdio
		.outputRead(process)
		.then(() => machine.agent.waitProcess({ containerId: process.containerId, execId: process.execId }))
		.catch((error: unknown) => {
			log.warn("the guest can't say how a process ended", { process: process.name, error: explain(error) });
			return SIGNAL_EXIT_BASE + SIGKILL;
		});
	const status = await raceLasting(waited, machine.died);
	process.endKnown = true;
	const exit = { status: typeof status === "number" ? status : SIGNAL_EXIT_BASE + SIGKILL, atMs: Date.now() };
	try {
		await stdio.drain(process, machine);
	} catch (error) {
		log.warn("a process's end is told before its last output is read", { process: process.name, error: explain(error) });
	}
	return exit;
}

/** With its first process a container's PID namespace ends, and every exec with it: their exits are told first. */
export async function execsEnd(containerId: string, execs: Iterable<GuestProcess>, log: Log): Promise<void> {
	const running = [...execs].filter((exec) => exec.state.kind === "running").map((exec) => exec.exited);
	if (running.length === 0) return;
	await withDeadline({ what: `the execs of container ${containerId}`, timeoutMs: EXEC_EXITS_MS }, () => Promise.all(running)).catch(
		(error: unknown) => log.warn("an exec outlives its container", { container: containerId, error: explain(error) }),
	);
}
