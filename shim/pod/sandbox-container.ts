/**
 * The first container of a Kubernetes pod (its "pause" container). It stands for the pod and runs nothing: the VM itself keeps what the
 * pause program keeps elsewhere. It has no disk and no process in the guest; its task is answered from here.
 */

import type { ContainerStats } from "../agent/client.ts";
import { ShimError } from "../base/errors.ts";
import type { ContainerHost, ContainerParts } from "./container-host.ts";
import { Container } from "./container.ts";
import { SIGKILL, SIGNAL_EXIT_BASE } from "./process.ts";
import { vmStats } from "./vm-stats.ts";

/** Signals that end the pause program by its own will, with status 0. */
const SIGINT = 2;
const SIGTERM = 15;

/** The sandbox's container. */
export class SandboxContainer extends Container {
	readonly #pod: ContainerHost;

	constructor(parts: Omit<ContainerParts, "disk" | "layers">, host: ContainerHost) {
		super({ ...parts, disk: null, layers: null }, host);
		this.#pod = host;
	}

	override get runsNothing(): boolean {
		return true;
	}

	override async prepare(): Promise<void> {
		this.complete = true;
	}

	override async start(execId: string, replay: boolean): Promise<void> {
		const process = this.process(execId);
		if (replay && process.state.kind !== "created") return;
		process.require(["created"], "start");
		process.transition({ kind: "starting" });
		this.#pod.publish({ kind: "start", containerId: this.id, pid: this.#pod.pid });
		process.transition({ kind: "running" });
		// It runs whether that can be written or not: whoever started it must hear of its end.
		this.resume();
		this.saveQuietly(process);
	}

	override resume(): void {
		const process = this.init;
		if (process.state.kind !== "running") return;
		void this.#pod.machine().died.then(() => this.stopped(process, { status: SIGNAL_EXIT_BASE + SIGKILL, atMs: Date.now() }));
	}

	override adoptStreams(): void {}

	override addExec(execId: string): void {
		throw new ShimError("call.unimplemented", `exec ${execId}: the sandbox container ${this.id} runs no process in the VM`, {
			remedy: "run the command in one of the pod's other containers",
		});
	}

	override async kill(execId: string, signalNumber: number): Promise<void> {
		const process = this.process(execId);
		const ends = signalNumber === SIGKILL || signalNumber === SIGTERM || signalNumber === SIGINT;
		if (process.state.kind === "stopped" || !ends) return;
		const status = signalNumber === SIGKILL || process.state.kind === "created" ? SIGNAL_EXIT_BASE + signalNumber : 0;
		// Nothing else runs in the VM, and nothing will: it ends while containerd hears of it.
		if (signalNumber === SIGKILL) this.#pod.endAlone(this.id);
		await this.stopped(process, { status, atMs: Date.now() });
	}

	override async resize(execId: string): Promise<void> {
		this.process(execId);
	}

	override async pause(): Promise<void> {
		throw new ShimError("call.unimplemented", `the sandbox container ${this.id} runs nothing that could be paused`);
	}

	override async unpause(): Promise<void> {
		await this.pause();
	}

	/** What the VM costs the node: the sandbox stands for it. */
	override async stats(): Promise<ContainerStats> {
		return vmStats(this.#pod.cgroup);
	}

	override async update(): Promise<void> {}
}
