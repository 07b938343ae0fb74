/**
 * A pod that containerd makes by its Sandbox API (containerd 2.x, `sandboxer = "shim"`): a VM without any container, which lives until containerd
 * stops it, whatever containers come and go. What containerd calls the sandbox's state is kept here; what the pod is made of, in the pod.
 */

import type { ContainerStats } from "../agent/client.ts";
import { refuseHostNamespaces } from "../agent/guest-spec.ts";
import type { OciSpec, PodSpec } from "../agent/oci-spec.ts";
import { deferred, withDeadline } from "../base/deadline.ts";
import { explain, ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { Config } from "../config/schema.ts";
import { nodeSize } from "../host/node.ts";
import type { Container } from "./container.ts";
import type { SandboxRecord } from "./journal.ts";
import { readyPlan } from "./launch.ts";
import { planPod } from "./plan.ts";
import type { PodPlan } from "./plan.ts";
import type { PodDns } from "./pod-config.ts";
import { withPodFiles, writePodFiles } from "./pod-files.ts";
import { SIGKILL, SIGNAL_EXIT_BASE } from "./process.ts";
import type { ExitRecord } from "./process.ts";
import type { PoolVm } from "./pool/vm.ts";
import type { Sandbox } from "./sandbox.ts";
import { vmStats } from "./vm-stats.ts";

/** What containerd asks when it wants a sandbox. */
export interface SandboxRequest {
	readonly bundle: string;
	readonly spec: PodSpec;
	/** Undefined: the node's. */
	readonly dns: PodDns | undefined;
}

/** A sandbox as containerd sees it. */
export interface SandboxStatus {
	/** Started, and its VM lives. */
	readonly ready: boolean;
	/** The VMM's; 0 when it has ended. */
	readonly pid: number;
	readonly createdAtMs: number;
	readonly exit: ExitRecord | undefined;
}

/** What the calls need of their pod. */
export interface SandboxApiPod {
	readonly podId: string;
	readonly folder: string;
	readonly config: Config;
	readonly log: Log;
	readonly pid: number;
	readonly sandbox: Sandbox;
	readonly containers: ReadonlyMap<string, Container>;
	/** Runs work after all earlier calls that change the pod. */
	exclusive<T>(work: () => Promise<T>): Promise<T>;
	/** Runs work that the pod's removal aborts. */
	making<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T>;
	/** Aborts what is being made, and waits for its end; `what` happens to the pod: stopped, removed. */
	giveUp(what: string): Promise<void>;
	/** A VM of the pool of the kind that the plan asks for, which is the caller's from now on; undefined: none is there. */
	warmVm(plan: PodPlan): Promise<PoolVm | undefined>;
	/** Writes the journal. @throws ShimError `journal.write` */
	save(): void;
	/** Ends the VM and gives everything back. */
	release(): Promise<void>;
}

const SIGTERM = 15;
const KILLED = SIGNAL_EXIT_BASE + SIGKILL;
/** The exit status of a sandbox that was stopped because containerd asked for it. */
const STOPPED = 0;

/** The sandbox of one pod, as containerd's Sandbox API has it. */
export class SandboxApi {
	readonly #pod: SandboxApiPod;
	readonly #exited = deferred<ExitRecord>();
	#record: SandboxRecord | undefined;

	constructor(pod: SandboxApiPod) {
		this.#pod = pod;
	}

	/** For the journal; undefined for a pod that containerd made in another way. */
	get record(): SandboxRecord | undefined {
		return this.#record;
	}

	/** Takes what the journal holds. */
	restore(record: SandboxRecord): void {
		this.#record = record;
		if (record.exit !== null) this.#exited.resolve(record.exit);
	}

	/** Settles when the sandbox has ended. */
	get exited(): Promise<ExitRecord> {
		return this.#exited.promise;
	}

	/**
	 * Boots the VM.
	 * @param replay the call may have had its effect with an earlier snpd
	 * @throws ShimError `pod.exists` for a second one
	 */
	create(request: SandboxRequest, replay: boolean): Promise<void> {
		const pod = this.#pod;
		return pod.exclusive(async () => {
			if (replay && this.#record !== undefined) return;
			if (this.#record !== undefined || pod.sandbox.state.kind !== "new")
				throw new ShimError("pod.exists", `sandbox ${pod.podId} exists already`);
			const { spec, bundle, dns } = request;
			const planned = planPod(pod.podId, spec, pod.config, pod.folder, nodeSize());
			refuseHostNamespaces(spec, 0, "pod");
			const plan = await readyPlan(planned);
			const sysctls = { ...spec.linux?.sysctl };
			this.#record = { bundle, createdAtMs: Date.now(), started: false, exit: null, sysctls };
			await pod.making((signal) => this.#make({ planned, plan }, dns, signal));
			pod.log.info("sandbox created");
		});
	}

	/** @param plans as it was planned, and with what the files it is launched from add to it */
	async #make(plans: { readonly planned: PodPlan; readonly plan: PodPlan }, dns: PodDns | undefined, signal: AbortSignal): Promise<void> {
		const { planned, plan } = plans;
		const { sandbox, folder } = this.#pod;
		try {
			sandbox.begin(plan, await this.#pod.warmVm(planned));
			writePodFiles(folder, plan.hostname, dns);
			await sandbox.boot(plan, undefined, signal);
			this.#pod.save();
			await sandbox.placed();
			sandbox.keep();
		} catch (error) {
			this.#record = undefined;
			await sandbox.undo();
			throw error;
		}
	}

	/**
	 * Declares the sandbox started.
	 * @param replay the call may have had its effect with an earlier snpd
	 * @throws ShimError `pod.state` for a second time, `pod.lost` when the VM has ended, `pod.not-found` before `create`
	 */
	start(replay: boolean): Promise<SandboxStatus> {
		return this.#pod.exclusive(async () => {
			const record = this.#require();
			if (record.started && !replay) throw new ShimError("pod.state", `sandbox ${this.#pod.podId} is started already`);
			this.#pod.sandbox.machine();
			this.#record = { ...record, started: true };
			try {
				this.#pod.save();
			} catch (error) {
				// Not started for a later snpd: not for this one either, and containerd may ask again.
				this.#record = record;
				throw error;
			}
			return this.status();
		});
	}

	/**
	 * Ends the VM, and with it what runs in it; its taps in the network's namespace go with the VM's process. What has ended stays so.
	 * @param graceMs how long the containers' processes may take to end by themselves
	 */
	async stop(graceMs: number): Promise<void> {
		const pod = this.#pod;
		await pod.giveUp("stopped");
		return pod.exclusive(async () => {
			if (this.#record === undefined || pod.sandbox.state.kind === "gone") return;
			if (pod.sandbox.state.kind === "running") await this.#endContainers(graceMs);
			await pod.release();
			this.end(STOPPED);
		});
	}

	async #endContainers(graceMs: number): Promise<void> {
		if (graceMs > 0) await this.#signalAll(SIGTERM, graceMs);
		const { agent_call_ms, stdio_drain_ms } = this.#pod.config.timeouts;
		await this.#signalAll(SIGKILL, agent_call_ms + stdio_drain_ms);
	}

	/** Sends a signal to all first processes, and waits for their ends. What does not work is logged: the VM's end comes next. */
	async #signalAll(signalNumber: number, timeoutMs: number): Promise<void> {
		const running = [...this.#pod.containers.values()].filter(({ init }) => init.state.kind !== "stopped");
		if (running.length === 0) return;
		const ends = running.map((container) => container.kill("", signalNumber, signalNumber === SIGKILL).then(() => container.init.exited));
		const what = `the containers of pod ${this.#pod.podId}`;
		await withDeadline({ what, timeoutMs }, () => Promise.all(ends)).catch((error: unknown) =>
			this.#pod.log.warn("containers outlast a signal", { signal: signalNumber, reason: explain(error) }),
		);
	}

	/** The sandbox has ended: its waiters hear of it. The first end counts. */
	end(status = KILLED): void {
		const record = this.#record;
		if (record === undefined || record.exit !== null) return;
		const exit = { status, atMs: Date.now() };
		this.#record = { ...record, exit };
		this.#exited.resolve(exit);
	}

	/** @throws ShimError `pod.not-found` before `create` */
	status(): SandboxStatus {
		const { started, createdAtMs, exit } = this.#require();
		const runs = this.#pod.sandbox.state.kind === "running";
		return { ready: runs && started && exit === null, pid: runs ? this.#pod.pid : 0, createdAtMs, exit: exit ?? undefined };
	}

	/**
	 * Asks the guest's agent whether it serves.
	 * @throws ShimError `pod.lost`, `wait.deadline`, `guest.unreachable`
	 */
	async ping(): Promise<void> {
		this.#require();
		await this.#pod.sandbox.machine().agent.check();
	}

	/** What the VM costs the node. @throws ShimError `pod.lost` when it has ended */
	stats(): ContainerStats {
		this.#require();
		this.#pod.sandbox.machine();
		return vmStats(this.#pod.sandbox.cgroup);
	}

	/** A container's specification with the files of its pod in it. */
	complete(spec: OciSpec): OciSpec {
		return this.#record === undefined ? spec : withPodFiles(this.#pod.folder, spec);
	}

	#require(): SandboxRecord {
		if (this.#record === undefined) throw new ShimError("pod.not-found", `sandbox ${this.#pod.podId} does not exist`);
		return this.#record;
	}
}
