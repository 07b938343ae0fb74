/** A container of a pod: its processes, their starts and their ends. */

import type { ContainerStats } from "../agent/client.ts";
import { guestProcess } from "../agent/guest-spec.ts";
import type { OciProcess, OciResources, OciSpec } from "../agent/oci-spec.ts";
import { explain, ShimError } from "../base/errors.ts";
import type { ErrorReason } from "../base/errors.ts";
import { raceLasting } from "../base/lasting.ts";
import type { Scope } from "../base/scope.ts";
import type { VerityLayer } from "../agent/storages.ts";
import type { ContainerDisk } from "./container-disk.ts";
import type { ContainerHost, ContainerParts } from "./container-host.ts";
import { ContainerStdio, streamPorts } from "./container-stdio.ts";
import { createInGuest, updateInGuest } from "./guest-container.ts";
import type { Machine } from "./machine.ts";
import { damageOf, explainDamage } from "./damage.ts";
import type { DeleteResult } from "./ports.ts";
import { killForSure } from "./forced-end.ts";
import { execsEnd, processEnd } from "./process-end.ts";
import { GuestProcess, SIGKILL, SIGNAL_EXIT_BASE } from "./process.ts";
import type { ExitRecord, Stdio } from "./process.ts";
import { limitsOf } from "./sizing.ts";
import type { Limits } from "./sizing.ts";
import { returnMessages } from "./small-files.ts";
import { numberStreams } from "./stdio.ts";

const SIGTERM = 15;
/** How long a killed container may take to end after the guest has the signal: an agent that moves output by calls reads it to its end before. */
const KILLED_END_MS = 90_000;
/** The exit status of a container that could not be started (containerd's CRI plugin gives the same). */
const START_ERROR_STATUS = 128;

/** One container. */
export class Container {
	readonly id: string;
	readonly bundle: string;
	readonly spec: OciSpec;
	/** Its address changes as it comes and goes. */
	disk: ContainerDisk | null;
	/** The layers on the disk, while the container is made; null when the disk holds one file system. */
	layers: readonly VerityLayer[] | null;
	readonly scope: Scope;
	readonly init: GuestProcess;
	readonly execs = new Map<string, GuestProcess>();
	/** Specifications of execs that were not started. */
	readonly execSpecs = new Map<string, OciProcess>();
	/** True once the guest knows the whole container. */
	complete = false;
	paused = false;
	/** The limits since the last update; undefined while those of the specification hold. */
	newLimits: Limits | undefined;
	readonly #host: ContainerHost;
	readonly #stdio: ContainerStdio;

	constructor(parts: ContainerParts, host: ContainerHost) {
		this.id = parts.id;
		this.bundle = parts.bundle;
		this.spec = parts.spec;
		this.disk = parts.disk;
		this.layers = parts.layers;
		this.scope = parts.scope;
		this.#host = host;
		this.#stdio = new ContainerStdio(host);
		this.init = new GuestProcess(parts.id, "", parts.stdio);
	}

	/** True for a container without a process in the guest. */
	get runsNothing(): boolean {
		return false;
	}

	/** @throws ShimError `process.not-found` */
	process(execId: string): GuestProcess {
		const process = execId === "" ? this.init : this.execs.get(execId);
		if (process === undefined) throw new ShimError("process.not-found", `container ${this.id} has no exec ${execId}`);
		return process;
	}

	/** Has the guest make the container. `source`: its disk, as the agent finds it. */
	async prepare(source: string, signal: AbortSignal): Promise<void> {
		await this.#explained(createInGuest(this, this.#host, this.#stdio, source, signal));
		this.complete = true;
	}

	/**
	 * Starts the first process or an exec.
	 * @param replay the call may have had its effect with an earlier snpd
	 */
	async start(execId: string, replay: boolean): Promise<void> {
		const process = this.process(execId);
		if (replay && (process.state.kind === "running" || process.state.kind === "stopped")) return;
		process.require(["created"], "start");
		process.transition({ kind: "starting" });
		try {
			await this.#explained(execId === "" ? this.#startInit(replay) : this.#startExec(process, replay));
		} catch (error) {
			this.#startFailed(process);
			throw error;
		}
		const { pid } = this.#host;
		if (execId === "") this.#host.publish({ kind: "start", containerId: this.id, pid });
		else this.#host.publish({ kind: "exec-started", containerId: this.id, execId, pid });
		if (process.state.kind === "starting") process.transition({ kind: "running" });
		// It runs whether that can be written or not: whoever started it must hear of its end.
		this.saveQuietly(process);
		this.#supervise(process);
	}

	async #explained(call: Promise<void>): Promise<void> {
		try {
			await call;
		} catch (error) {
			throw await explainDamage(error, this, this.#host);
		}
	}

	/** An exec may be started again; a container whose first process could not start is over, and its clients may then delete it. */
	#startFailed(process: GuestProcess): void {
		if (process.state.kind !== "starting") return;
		if (process.execId !== "") process.transition({ kind: "created" });
		else process.transition({ kind: "stopped", exit: { status: START_ERROR_STATUS, atMs: Date.now() } });
		this.saveQuietly(process);
	}

	async #startInit(replay: boolean): Promise<void> {
		this.#host.save();
		const { agent } = this.#host.machine();
		await this.#host.timeline.step("container-start", () =>
			onceOnly(replay, ["guest.exists", "guest.state"], agent.startContainer(this.id)),
		);
	}

	async #startExec(process: GuestProcess, replay: boolean): Promise<void> {
		const spec = this.execSpecs.get(process.execId);
		if (spec === undefined) throw new ShimError("internal", `${process.name} has no specification`);
		const machine = this.#host.machine();
		if (!replay) process.streams = numberStreams(process, () => this.#host.nextNumber());
		this.#host.save();
		const sized = process.size === undefined ? spec : { ...spec, consoleSize: { width: process.size.columns, height: process.size.rows } };
		const request = { container_id: this.id, exec_id: process.execId, process: guestProcess(sized), ...streamPorts(process, machine) };
		await this.#host.timeline.step("exec-start", () =>
			this.#stdio.openWhile(process, () => onceOnly(replay, ["guest.exists"], machine.agent.execProcess(request))),
		);
		this.execSpecs.delete(process.execId);
	}

	/** Takes up, after a restart of snpd, what an earlier one had started. */
	resume(): void {
		for (const process of [this.init, ...this.execs.values()]) {
			if (process.state.kind === "running") this.#supervise(process);
		}
	}

	/** Adopts the stdio of all processes; called when the keeper has come back. */
	adoptStreams(): void {
		for (const process of [this.init, ...this.execs.values()]) this.#stdio.adopt(process);
	}

	/** The numbers of all streams that a process here has or had. */
	get streamNumbers(): number[] {
		return [this.init, ...this.execs.values()].flatMap(({ streams }) => [streams.stdin, streams.stdout, streams.stderr]);
	}

	/** Registers an exec; it runs once `start` is called. */
	addExec(execId: string, spec: OciProcess, stdio: Stdio, replay: boolean): void {
		if (this.execs.has(execId)) {
			if (replay) return;
			throw new ShimError("process.exists", `container ${this.id} already has an exec ${execId}`);
		}
		this.init.require(["created", "running"], `exec ${execId}`);
		this.execs.set(execId, new GuestProcess(this.id, execId, stdio));
		this.execSpecs.set(execId, { ...spec, terminal: stdio.terminal });
		try {
			this.#host.save();
		} catch (error) {
			this.execs.delete(execId);
			this.execSpecs.delete(execId);
			throw error;
		}
		this.#host.publish({ kind: "exec-added", containerId: this.id, execId });
	}

	/** Sends a signal. To a stopped process: nothing to do. To one that was not started: only signals that end it. */
	async kill(execId: string, signalNumber: number, all: boolean): Promise<void> {
		const process = this.process(execId);
		if (process.state.kind === "stopped") return;
		if (process.state.kind === "created" && signalNumber !== SIGKILL && signalNumber !== SIGTERM) {
			throw new ShimError("process.state", `${process.name} was not started: only SIGTERM and SIGKILL can reach it`);
		}
		if (process.state.kind === "created") {
			// Nothing ever wrote there, and containerd's client waits for the end of it.
			this.#stdio.abort(process);
			await this.stopped(process, { status: SIGNAL_EXIT_BASE + signalNumber, atMs: Date.now() });
			return;
		}
		if (signalNumber === SIGKILL) this.#hurry(all || execId === "" ? [this.init, ...this.execs.values()] : [process]);
		const target = { containerId: this.id, execId: all ? "" : execId };
		try {
			const { agent, vmm } = this.#host.machine();
			const signal = (): Promise<void> => agent.signalProcess(target, signalNumber);
			const forced = { process: this.init, signal, endVm: () => vmm.kill(), endMs: KILLED_END_MS, log: this.#host.log };
			// What is paused ends when it goes on.
			if (signalNumber === SIGKILL && target.execId === "" && !this.paused) await killForSure(forced);
			else await signal();
		} catch (error) {
			// It ended meanwhile: that is what the caller wanted.
			if (!(error instanceof ShimError && (error.code === "not-found" || error.reason === "pod.lost"))) throw error;
		}
	}

	/** From now on nobody waits long for the readers of these processes' last output. */
	#hurry(processes: readonly GuestProcess[]): void {
		for (const process of processes) this.#stdio.hurry(process);
		this.saveQuietly(this.init);
	}

	/** Sets a terminal's size; before an exec's start it is remembered. */
	async resize(execId: string, columns: number, rows: number): Promise<void> {
		const process = this.process(execId);
		process.size = { columns, rows };
		if (process.state.kind === "stopped" || (execId !== "" && process.state.kind === "created")) return;
		await this.#host.machine().agent.resizeTerminal({ containerId: this.id, execId }, columns, rows);
	}

	/** Ends a process's standard input after what containerd has written so far. */
	closeStdin(execId: string): void {
		const process = this.process(execId);
		process.stdinClosed = true;
		this.#stdio.closeStdin(process);
		this.#host.save();
	}

	async pause(): Promise<void> {
		this.init.require(["running"], "pause");
		await this.#host.machine().agent.pauseContainer(this.id);
		this.paused = true;
		this.#host.save();
		this.#host.publish({ kind: "paused", containerId: this.id });
	}

	async unpause(): Promise<void> {
		await this.#host.machine().agent.resumeContainer(this.id);
		this.paused = false;
		this.#host.save();
		this.#host.publish({ kind: "resumed", containerId: this.id });
	}

	/** What the container uses. */
	async stats(): Promise<ContainerStats> {
		return await this.#host.machine().agent.stats(this.id);
	}

	/** What the container may use. */
	get limits(): Limits {
		return this.newLimits ?? limitsOf(this.spec.linux?.resources ?? {});
	}

	/** Changes limits; those that are left out stay as they are. @throws ShimError `guest.call` for one that the guest can't hold */
	async update(resources: OciResources): Promise<void> {
		await updateInGuest(this.id, resources, this.#host);
	}

	/**
	 * Forgets a stopped exec.
	 * @throws ShimError `process.state` while it runs
	 */
	deleteExec(execId: string): DeleteResult {
		const process = this.process(execId);
		process.require(["created", "stopped"], "delete");
		this.#stdio.release(process);
		this.execs.delete(execId);
		this.execSpecs.delete(execId);
		return this.result(process);
	}

	/** How a process ended, for the answer of Delete. One that never ran counts as killed. */
	result(process: GuestProcess): DeleteResult {
		const exit = process.exit ?? { status: SIGNAL_EXIT_BASE + SIGKILL, atMs: Date.now() };
		return { pid: this.#host.pid, exitStatus: exit.status, exitedAtMs: exit.atMs };
	}

	/** Gives all stdio away; for a container that is being removed. */
	releaseStdio(): void {
		for (const process of [this.init, ...this.execs.values()]) this.#stdio.release(process);
	}

	#supervise(process: GuestProcess): void {
		this.#watch(process).catch((error: unknown) => this.#host.log.error("watching a process failed", error, { process: process.name }));
	}

	async #watch(process: GuestProcess): Promise<void> {
		const machine = this.#host.machine();
		const onDeath = (): void => {
			if (process.state.kind === "running") this.#hurry([process]);
		};
		const exit = await processEnd(process, { machine, stdio: this.#stdio, log: this.#host.log, onDeath });
		if (process.execId === "") {
			await execsEnd(this.id, this.execs.values(), this.#host.log);
			await this.#returnMessages(machine, exit);
		}
		await this.stopped(process, exit);
	}

	/** Whoever hears of the end reads the message: it must be there by then. */
	async #returnMessages(machine: Machine, { status }: ExitRecord): Promise<void> {
		if (!machine.details.files) return;
		// One that was killed ended for that.
		const asked = status !== 0 && !this.init.killed;
		const reason = (): Promise<string> => (asked ? damageOf(this, this.#host) : Promise.resolve(""));
		try {
			await raceLasting(returnMessages(this.id, this.spec, machine.agent, reason), machine.died);
		} catch (error) {
			this.#host.log.warn("a termination message stays in the guest", { container: this.id, error: explain(error) });
		}
	}

	/** What became of a process is a fact whether it can be written or not. */
	protected saveQuietly(process: GuestProcess): void {
		try {
			this.#host.save();
		} catch (error) {
			this.#host.log.error("what became of a process is not in the journal", error, { process: process.name });
		}
	}

	/** Makes the end of a process known. */
	protected async stopped(process: GuestProcess, exit: ExitRecord): Promise<void> {
		if (process.state.kind === "stopped") return;
		process.transition({ kind: "stopped", exit });
		// Before the journal: once that says "stopped", no later snpd tells of the end by itself.
		this.#host.publish({
			kind: "exit",
			containerId: this.id,
			execId: process.execId,
			pid: this.#host.pid,
			status: exit.status,
			atMs: exit.atMs,
		});
		this.saveQuietly(process);
	}
}

/** On a replay, "it is so already", which the agent says for one of these reasons, is success. */
async function onceOnly(replay: boolean, already: readonly ErrorReason[], call: Promise<void>): Promise<void> {
	try {
		await call;
	} catch (error) {
		const done = error instanceof ShimError && already.includes(error.reason);
		if (!(replay && done)) throw error;
	}
}
