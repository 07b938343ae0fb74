/** A container of a pod: its processes, their starts and their ends. */

import type { ContainerStats } from "../agent/client.ts";
import { guestResources, resourcesLeftOut } from "../agent/guest-resources.ts";
import { guestProcess, guestSpec, sharesPidNamespace } from "../agent/guest-spec.ts";
import type { OciProcess, OciResources, OciSpec } from "../agent/oci-spec.ts";
import { rootfsStorage } from "../agent/storages.ts";
import { explain, ShimError } from "../base/errors.ts";
import { withDeadline } from "../base/deadline.ts";
import type { Log } from "../base/log.ts";
import type { Scope } from "../base/scope.ts";
import type { Config } from "../config/schema.ts";
import type { HostCgroup } from "../host/cgroups.ts";
import type { Machine } from "./machine.ts";
import { isSandboxContainer } from "./plan.ts";
import type { DeleteResult, Mover, PodEvent } from "./ports.ts";
import { GuestProcess, SIGKILL, SIGNAL_EXIT_BASE } from "./process.ts";
import type { ExitRecord, Stdio } from "./process.ts";
import { limitsOf } from "./sizing.ts";
import type { Limits } from "./sizing.ts";
import { copySmallFiles, returnMessages } from "./small-files.ts";
import { adoptStdio, numberStreams, openStdio } from "./stdio.ts";
import type { ProcessStdio } from "./stdio.ts";
import type { Timeline } from "./timeline.ts";

const SIGTERM = 15;
/** The exit status of a container that could not be started (containerd's CRI plugin gives the same). */
const START_ERROR_STATUS = 128;
/** How long a keeper may take to come back to a new snpd (it tries every 2 s at least), before its processes' ends are told without it. */
const KEEPER_RETURN_MS = 10_000;
/** How long the exits of execs may hold back the exit of their container. */
const EXEC_EXITS_MS = 2_000;

/** What a container needs of its pod. */
export interface ContainerHost {
	readonly config: Config;
	readonly log: Log;
	readonly timeline: Timeline;
	/** What is reported as every process's PID: the VM is what the host sees of it. */
	readonly pid: number;
	/** The control group of the VMM on the host. */
	readonly cgroup: HostCgroup | undefined;
	/** Kernel parameters that the pod asks for. */
	readonly sysctls: Readonly<Record<string, string>>;
	/** @throws ShimError `pod.lost` when the VM is gone */
	machine(): Machine;
	/** @throws ShimError when the keeper is not connected */
	mover(): Mover;
	/** Settles when the keeper is connected. */
	keeperHere(): Promise<undefined>;
	nextNumber(): number;
	/** Writes the journal. @throws ShimError `journal.write` */
	save(): void;
	publish(event: PodEvent): void;
}

/** The disk of a container's root file system. */
export interface ContainerDisk {
	readonly id: string;
	readonly path: string;
}

/** What a container is made of. */
export interface ContainerParts {
	readonly id: string;
	readonly bundle: string;
	readonly spec: OciSpec;
	readonly stdio: Stdio;
	readonly disk: ContainerDisk | null;
	readonly scope: Scope;
}

/** One container. */
export class Container {
	readonly id: string;
	readonly bundle: string;
	readonly spec: OciSpec;
	readonly disk: ContainerDisk | null;
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
	readonly #stdio = new Map<string, ProcessStdio>();

	constructor(parts: ContainerParts, host: ContainerHost) {
		this.id = parts.id;
		this.bundle = parts.bundle;
		this.spec = parts.spec;
		this.disk = parts.disk;
		this.scope = parts.scope;
		this.#host = host;
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

	/** Has the guest make the container. `slot`: PCI slot of its disk, two hexadecimal digits. */
	async prepare(slot: string, signal: AbortSignal): Promise<void> {
		const { timeline } = this.#host;
		const machine = this.#host.machine();
		const guestSources = await timeline.step("copy-files", () => copySmallFiles(this.id, this.spec, machine.agent, signal));
		const spec = guestSpec(this.spec, {
			containerId: this.id,
			podPid: this.#host.pid,
			sandbox: isSandboxContainer(this.spec),
			seccomp: machine.details.seccomp,
			limits: machine.details.limits,
			podSysctls: this.#host.sysctls,
			guestSources,
		});
		this.#nameLeftOut(this.spec.linux?.resources ?? {});
		const storages = [rootfsStorage(this.id, slot)];
		this.init.streams = numberStreams(this.init, () => this.#host.nextNumber());
		this.#host.save();
		const ports = machine.details.streams ? streamPorts(this.init) : {};
		await timeline.step("container-create", () =>
			this.#withStdio(this.init, () =>
				machine.agent.createContainer(
					{ container_id: this.id, exec_id: this.id, storages, OCI: spec, sandbox_pidns: sharesPidNamespace(this.spec), ...ports },
					{ signal },
				),
			),
		);
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
			if (execId === "") await this.#startInit(replay);
			else await this.#startExec(process, replay);
		} catch (error) {
			this.#startFailed(process);
			throw error;
		}
		const { pid } = this.#host;
		if (execId === "") this.#host.publish({ kind: "start", containerId: this.id, pid });
		else this.#host.publish({ kind: "exec-started", containerId: this.id, execId, pid });
		if (process.state.kind === "starting") process.transition({ kind: "running" });
		this.#host.save();
		this.#supervise(process);
	}

	/** An exec may be started again; a container whose first process could not start is over, and its clients may then delete it. */
	#startFailed(process: GuestProcess): void {
		if (process.state.kind !== "starting") return;
		if (process.execId !== "") process.transition({ kind: "created" });
		else process.transition({ kind: "stopped", exit: { status: START_ERROR_STATUS, atMs: Date.now() } });
		this.#saveQuietly(process);
	}

	async #startInit(replay: boolean): Promise<void> {
		this.#host.save();
		const { agent } = this.#host.machine();
		await this.#host.timeline.step("container-start", () => onceOnly(replay, agent.startContainer(this.id)));
	}

	async #startExec(process: GuestProcess, replay: boolean): Promise<void> {
		const spec = this.execSpecs.get(process.execId);
		if (spec === undefined) throw new ShimError("internal", `${process.name} has no specification`);
		const { agent, details } = this.#host.machine();
		if (!replay) process.streams = numberStreams(process, () => this.#host.nextNumber());
		this.#host.save();
		const ports = details.streams ? streamPorts(process) : {};
		const sized = process.size === undefined ? spec : { ...spec, consoleSize: { width: process.size.columns, height: process.size.rows } };
		const request = { container_id: this.id, exec_id: process.execId, process: guestProcess(sized), ...ports };
		await this.#host.timeline.step("exec-start", () => this.#withStdio(process, () => onceOnly(replay, agent.execProcess(request))));
		this.execSpecs.delete(process.execId);
	}

	/** Opens a process's stdio while the guest makes the process: each waits for the other there. */
	async #withStdio(process: GuestProcess, create: () => Promise<void>): Promise<void> {
		const stdio = openStdio(process, this.#stdioContext());
		this.#stdio.set(process.execId, stdio);
		try {
			await Promise.race([Promise.all([create(), stdio.opened]), this.#host.machine().died.then((death) => Promise.reject(death))]);
		} catch (error) {
			stdio.abort();
			this.#stdio.delete(process.execId);
			throw error;
		}
	}

	#stdioContext() {
		const machine = this.#host.machine();
		return { agent: machine.agent, mover: this.#host.mover(), vsock: machine.vsock, streams: machine.details.streams, log: this.#host.log };
	}

	/** Takes up, after a restart of snpd, what an earlier one had started. */
	resume(): void {
		for (const process of [this.init, ...this.execs.values()]) {
			if (process.state.kind === "running") this.#supervise(process);
		}
	}

	/**
	 * Adopts the stdio of processes that an earlier snpd, or this one, started; called when the keeper has come back. What a stopped process has left is the
	 * keeper's until Delete: by streams alone, calls end with their process.
	 */
	adoptStreams(): void {
		const { streams } = this.#host.machine().details;
		for (const process of [this.init, ...this.execs.values()]) {
			const busy = this.#stdio.has(process.execId) && (!streams || process.state.kind === "starting");
			if (busy || (process.state.kind === "stopped" && !streams)) continue;
			if (process.execId !== "" && process.state.kind === "created") continue;
			this.#stdio.set(process.execId, adoptStdio(process, this.#stdioContext()));
		}
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
			this.#stdio.get(execId)?.abort();
			await this.stopped(process, { status: SIGNAL_EXIT_BASE + signalNumber, atMs: Date.now() });
			return;
		}
		if (signalNumber === SIGKILL) this.#hurry(all || execId === "" ? [this.init, ...this.execs.values()] : [process]);
		const target = { containerId: this.id, execId: all ? "" : execId };
		try {
			await this.#host.machine().agent.signalProcess(target, signalNumber);
		} catch (error) {
			// It ended meanwhile: that is what the caller wanted.
			if (!(error instanceof ShimError && (error.code === "not-found" || error.reason === "pod.lost"))) throw error;
		}
	}

	/** From now on nobody waits long for the readers of these processes' last output. */
	#hurry(processes: readonly GuestProcess[]): void {
		for (const process of processes) {
			process.killed = true;
			this.#stdio.get(process.execId)?.hurry?.();
		}
		this.#saveQuietly(this.init);
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
		this.#stdio.get(execId)?.closeStdin();
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
		const { agent, details } = this.#host.machine();
		this.#nameLeftOut(resources);
		await agent.updateContainer(this.id, guestResources(resources, details));
	}

	#nameLeftOut(resources: OciResources): void {
		const leftOut = resourcesLeftOut(resources, this.#host.machine().details);
		if (leftOut.length > 0)
			this.#host.log.warn("resources that have no place in the guest", { container: this.id, passedOver: leftOut.join(" ") });
	}

	/**
	 * Forgets a stopped exec.
	 * @throws ShimError `process.state` while it runs
	 */
	deleteExec(execId: string): DeleteResult {
		const process = this.process(execId);
		process.require(["created", "stopped"], "delete");
		this.#releaseStdio(process);
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
		for (const process of [this.init, ...this.execs.values()]) this.#releaseStdio(process);
	}

	/** Last output belongs to its reader, however slow it is; of a process that never ran there is none. */
	#releaseStdio(process: GuestProcess): void {
		const stdio = this.#stdio.get(process.execId);
		this.#stdio.delete(process.execId);
		const ran = process.state.kind === "running" || process.state.kind === "stopped";
		if (ran && stdio?.linger !== undefined) stdio.linger();
		else stdio?.abort();
	}

	#supervise(process: GuestProcess): void {
		this.#watch(process).catch((error: unknown) => this.#host.log.error("watching a process failed", error, { process: process.name }));
	}

	/**
	 * Waits for a process's end, then for its output to be read, then tells everybody. Output that takes too long is moved on, until Delete and
	 * after it.
	 */
	async #watch(process: GuestProcess): Promise<void> {
		const machine = this.#host.machine();
		const dead = machine.died.then(() => {
			if (process.state.kind === "running") this.#hurry([process]);
			return SIGNAL_EXIT_BASE + SIGKILL;
		});
		const outputRead = this.#stdio.get(process.execId)?.outputRead ?? Promise.resolve();
		const waited = outputRead
			.then(() => machine.agent.waitProcess({ containerId: this.id, execId: process.execId }))
			.catch((error: unknown) => {
				this.#host.log.warn("the guest can't say how a process ended", { process: process.name, error: explain(error) });
				return SIGNAL_EXIT_BASE + SIGKILL;
			});
		const status = await Promise.race([waited, dead]);
		const exit = { status, atMs: Date.now() };
		try {
			if (machine.details.streams && !this.#stdio.has(process.execId)) await this.#keeperReturns(machine);
			await this.#stdio.get(process.execId)?.drain(this.#host.config.timeouts.stdio_drain_ms);
		} catch (error) {
			this.#host.log.warn("a process's end is told before its last output is read", { process: process.name, error: explain(error) });
		}
		if (process.execId === "") {
			await this.#execsEnd();
			await this.#returnMessages(machine);
		}
		await this.stopped(process, exit);
	}

	/** Whoever hears of the end reads the message: it must be there by then. */
	async #returnMessages(machine: Machine): Promise<void> {
		if (!machine.details.files) return;
		try {
			await Promise.race([returnMessages(this.id, this.spec, machine.agent), machine.died]);
		} catch (error) {
			this.#host.log.warn("a termination message stays in the guest", { container: this.id, error: explain(error) });
		}
	}

	/** A new snpd may hear of an end before it knows the streams. */
	async #keeperReturns(machine: Machine): Promise<void> {
		await withDeadline({ what: "the pod's keeper", timeoutMs: KEEPER_RETURN_MS }, () =>
			Promise.race([this.#host.keeperHere(), machine.died.then(() => undefined)]),
		);
	}

	/** With its first process the container's PID namespace ends, and every exec with it: their exits are told first. */
	async #execsEnd(): Promise<void> {
		const running = [...this.execs.values()].filter((exec) => exec.state.kind === "running").map((exec) => exec.exited);
		if (running.length === 0) return;
		await withDeadline({ what: `the execs of container ${this.id}`, timeoutMs: EXEC_EXITS_MS }, () => Promise.all(running)).catch(
			(error: unknown) => this.#host.log.warn("an exec outlives its container", { container: this.id, error: explain(error) }),
		);
	}

	/** The end of a process is a fact whether it can be written or not. */
	#saveQuietly(process: GuestProcess): void {
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
		this.#saveQuietly(process);
		this.#host.publish({
			kind: "exit",
			containerId: this.id,
			execId: process.execId,
			pid: this.#host.pid,
			status: exit.status,
			atMs: exit.atMs,
		});
	}
}

/** The numbers of a process's streams as the agent's request carries them. */
function streamPorts(process: GuestProcess): { stdin_port: number; stdout_port: number; stderr_port: number } {
	return { stdin_port: process.streams.stdin, stdout_port: process.streams.stdout, stderr_port: process.streams.stderr };
}

/** On a replay, "it is so already" is success. */
async function onceOnly(replay: boolean, call: Promise<void>): Promise<void> {
	try {
		await call;
	} catch (error) {
		const done = error instanceof ShimError && (error.reason === "guest.exists" || error.reason === "guest.state");
		if (!(replay && done)) throw error;
	}
}
