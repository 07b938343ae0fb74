/** A pod: one VM, its containers, and the order in which they come and go. */

import { resolve } from "node:path";

import { refuseHostNamespaces } from "../agent/guest-spec.ts";
import { readSpec } from "../agent/oci-spec.ts";
import type { OciResources, OciSpec } from "../agent/oci-spec.ts";
import { shmStorage } from "../agent/storages.ts";
import { asShimError, explain, ShimError } from "../base/errors.ts";
import { deferred, withDeadline } from "../base/deadline.ts";
import type { Log } from "../base/log.ts";
import { Mailbox } from "../base/mailbox.ts";
import { Scope } from "../base/scope.ts";
import type { Config } from "../config/schema.ts";
import { cgroupPath, HostCgroup } from "../host/cgroups.ts";
import { nodeSize } from "../host/node.ts";
import type { RootfsImages } from "../storage/images.ts";
import { slotOfBdf } from "../vmm/plan.ts";
import { bootMachine, checkGuestFiles } from "./boot.ts";
import { Container } from "./container.ts";
import type { ContainerDisk, ContainerHost } from "./container.ts";
import { growVm } from "./growth.ts";
import type { VmSize } from "./growth.ts";
import { Journal } from "./journal.ts";
import type { Tombstone } from "./journal.ts";
import type { Machine } from "./machine.ts";
import { isSandboxContainer, planPod } from "./plan.ts";
import type { PodPlan } from "./plan.ts";
import { PodNetwork } from "./pod-network.ts";
import type { NetworkRecord, PodNetworkOptions } from "./pod-network.ts";
import type { CreateRequest, DeleteResult, Mover, PodEvent, PodIdentity, PublishEvent } from "./ports.ts";
import { podRecord } from "./record.ts";
import { SandboxContainer } from "./sandbox-container.ts";
import { limitsOf } from "./sizing.ts";
import { Timeline } from "./timeline.ts";

/** The states of a pod. A pod without a VM is `new`; one whose VM has died by itself is `lost`; `gone` is the end. */
export type PodState =
	| { readonly kind: "new" }
	| { readonly kind: "booting" }
	| { readonly kind: "running"; readonly machine: Machine }
	| { readonly kind: "lost"; readonly death: ShimError }
	| { readonly kind: "gone" };

/** Which state may follow which. */
const NEXT: Readonly<Record<PodState["kind"], readonly PodState["kind"][]>> = {
	new: ["booting", "running", "lost", "gone"],
	booting: ["running", "new", "gone"],
	running: ["lost", "gone"],
	lost: ["gone"],
	gone: [],
};

/** What a pod needs of the process it lives in. */
export interface PodServices {
	readonly publish: PublishEvent;
	readonly images: (config: Config) => RootfsImages;
	/** Called when the last container has gone, and the pod's first one before it. */
	readonly abandoned: (pod: Pod) => void;
	readonly log: Log;
}

/** How many ends of deleted processes are remembered for calls that are replayed. */
const MAX_TOMBSTONES = 64;
/** How long work that was aborted may take to notice. */
const GIVE_UP_MS = 10_000;

/** One pod. */
export class Pod implements ContainerHost {
	readonly identity: PodIdentity;
	readonly folder: string;
	readonly config: Config;
	readonly log: Log;
	readonly journal: Journal;
	readonly containers = new Map<string, Container>();
	timeline = new Timeline();
	tombstones: Tombstone[] = [];
	/** The VMM's process, from the moment it exists. */
	vmm: { readonly pid: number; readonly startTime: string } | null = null;
	/** What the VM has, and what it may grow to; known from its boot on. */
	size: VmSize | undefined;
	/** The control group of the VMM, once it is decided. */
	cgroup: HostCgroup | undefined;
	/** The pod's network, from before its first effect; null: loopback alone. */
	network: PodNetwork | null = null;
	keeperPid = 0;
	nextStream = 1;
	readonly #services: PodServices;
	readonly #mailbox: Mailbox;
	readonly #scope: Scope;
	#state: PodState = { kind: "new" };
	#mover: Mover | undefined;
	#keeperHere = deferred<undefined>();
	/** The container that is being made: its removal, or the pod's, ends the making. */
	#making: { readonly id: string; readonly abort: AbortController } | undefined;

	constructor(identity: PodIdentity, folder: string, config: Config, services: PodServices) {
		this.identity = identity;
		this.folder = folder;
		this.config = config;
		this.log = services.log.with({ namespace: identity.namespace, pod: identity.podId });
		this.journal = new Journal(folder);
		this.#services = services;
		this.#mailbox = new Mailbox(`pod ${identity.podId}`);
		this.#scope = new Scope(`pod ${identity.podId}`);
	}

	get state(): PodState {
		return this.#state;
	}

	/** The VMM's PID; 0 while there is none. */
	get pid(): number {
		return this.vmm?.pid ?? 0;
	}

	transition(next: PodState): void {
		if (!NEXT[this.#state.kind].includes(next.kind)) {
			throw new ShimError("pod.state", `pod ${this.identity.podId} is ${this.#state.kind}: it can't become ${next.kind}`);
		}
		this.log.info("pod state", { from: this.#state.kind, to: next.kind });
		this.#state = next;
	}

	/** The kernel parameters of a Kubernetes pod: its sandbox container names them. */
	get sysctls(): Readonly<Record<string, string>> {
		const sandbox = [...this.containers.values()].find((container) => container.runsNothing);
		return sandbox?.spec.linux?.sysctl ?? {};
	}

	machine(): Machine {
		if (this.#state.kind === "running") return this.#state.machine;
		if (this.#state.kind === "lost") throw this.#state.death;
		throw new ShimError("pod.state", `pod ${this.identity.podId} is ${this.#state.kind}: it has no VM to talk to`);
	}

	mover(): Mover {
		if (this.#mover === undefined) throw new ShimError("stream.failed", `pod ${this.identity.podId}: its keeper is not connected`);
		return this.#mover;
	}

	nextNumber(): number {
		return this.nextStream++;
	}

	save(): void {
		this.journal.write(podRecord(this));
	}

	publish(event: PodEvent): void {
		this.#services.publish(this.identity, event);
	}

	/** The pod's keeper is connected (again). */
	attach(mover: Mover): void {
		this.#mover = mover;
		this.keeperPid = mover.pid;
		if (this.#state.kind !== "running") return;
		const containers = [...this.containers.values()];
		for (const container of containers) container.adoptStreams();
		mover.lingerOthers(new Set(containers.flatMap((container) => container.streamNumbers)));
		this.#keeperHere.resolve(undefined);
	}

	/** Settles when the pod's keeper is connected and its streams are known. */
	keeperHere(): Promise<undefined> {
		return this.#keeperHere.promise;
	}

	/** True while the pod's keeper is connected. */
	get attached(): boolean {
		return this.#mover !== undefined;
	}

	/** The pod's keeper is away. */
	detach(): void {
		this.#mover = undefined;
		this.#keeperHere = deferred();
	}

	/** True for a container that is here, or was and is remembered. */
	knows(containerId: string): boolean {
		return this.containers.has(containerId) || this.tombstones.some((stone) => stone.containerId === containerId);
	}

	/** @throws ShimError `container.not-found` */
	container(id: string): Container {
		const container = this.containers.get(id);
		if (container === undefined) throw new ShimError("container.not-found", `pod ${this.identity.podId} has no container ${id}`);
		return container;
	}

	/**
	 * Makes a container, and the pod's VM with its first one.
	 * @param replay the call may have had its effect with an earlier snpd
	 * @returns the PID to report
	 */
	create(request: CreateRequest, replay: boolean): Promise<number> {
		return this.#mailbox.run(async () => {
			if (this.containers.has(request.id)) {
				if (replay) return this.pid;
				throw new ShimError("container.exists", `container ${request.id} exists already`);
			}
			if (this.#state.kind === "lost") throw this.#state.death;
			const { id, bundle, rootfs, stdio } = request;
			const abort = new AbortController();
			this.#making = { id, abort };
			try {
				const spec = await this.timeline.step("read-spec", () => readSpec(bundle));
				if (this.#state.kind === "new") await this.#createFirst(request, spec, abort);
				else await this.#createFurther(request, spec, abort);
			} finally {
				this.#making = undefined;
			}
			this.publish({ kind: "create", containerId: id, bundle, rootfs, stdio, pid: this.pid });
			this.log.info("container created", { container: id });
			return this.pid;
		});
	}

	async #createFirst(request: CreateRequest, spec: OciSpec, abort: AbortController): Promise<void> {
		const plan = planPod(this.identity.podId, spec, this.config, this.folder, nodeSize());
		refuseHostNamespaces(spec, 0);
		this.size = { now: { vcpus: plan.vcpus, memoryMib: plan.memoryMib }, most: plan.most };
		this.cgroup = plan.cgroupsPath === "" ? undefined : new HostCgroup(cgroupPath(plan.cgroupsPath));
		await checkGuestFiles(plan);
		const boot = new Scope(`boot of pod ${this.identity.podId}`);
		this.transition({ kind: "booting" });
		let making: Promise<unknown> = Promise.resolve();
		try {
			boot.defer("pod folder", () => this.journal.remove());
			this.journal.open();
			const network = this.#openNetwork(plan, boot);
			this.save();
			const { container, disk } = isSandboxContainer(spec)
				? this.#newSandboxContainer(request, spec, boot)
				: this.#newContainer(request, spec, boot, abort.signal);
			making = container;
			const { machine, slot } = await bootMachine({
				podId: this.identity.podId,
				folder: this.folder,
				plan,
				config: this.config,
				timeline: this.timeline,
				scope: boot,
				signal: abort.signal,
				log: this.log,
				cgroup: this.cgroup,
				disk,
				network: network === null ? Promise.resolve(undefined) : this.#prepareNetwork(network),
				onVmm: (vmm) => {
					this.vmm = { pid: vmm.pid, startTime: vmm.startTime.toString() };
					this.save();
				},
			});
			this.transition({ kind: "running", machine });
			const made = await container;
			if (network !== null) await this.timeline.step("guest-network", () => network.tell(machine.agent, { signal: abort.signal }));
			await this.timeline.step("sandbox", () => this.#createSandbox(plan.hostname, abort.signal));
			await this.#prepare(made, slot, abort.signal);
			boot.moveTo(this.#scope);
			this.#watchDeath(machine);
			network?.follow(machine);
		} catch (error) {
			abort.abort(error);
			await this.#undo(boot);
			await this.#settled(making);
			this.containers.clear();
			this.vmm = null;
			this.cgroup = undefined;
			this.size = undefined;
			this.network = null;
			this.#state = { kind: "new" };
			throw error;
		}
	}

	/** What is given up late finds its scope closed, so nothing leaks when this wait is. */
	async #settled(making: Promise<unknown>): Promise<void> {
		const wait = { what: `the container of pod ${this.identity.podId} that was being made`, timeoutMs: GIVE_UP_MS };
		await withDeadline(wait, () => Promise.allSettled([making])).catch((error: unknown) => this.log.error("cleaning up goes on", error));
	}

	/** Finds the pod's namespace; `scope` owns what will be made there. */
	#openNetwork(plan: PodPlan, scope: Scope): PodNetwork | null {
		if (plan.network.kind === "loopback") return null;
		const network = PodNetwork.open(plan.network.path, plan.vcpus, this.#networkOptions());
		scope.defer(`network of ${plan.network.path}`, () => network.close());
		this.network = network;
		return network;
	}

	/** Joins the namespace's interfaces to taps while the VMM starts. */
	#prepareNetwork(network: PodNetwork): Promise<PodNetwork> {
		const prepared = this.timeline.step("network", () => network.prepare().then(() => network));
		prepared.catch(() => undefined);
		return prepared;
	}

	#networkOptions(): PodNetworkOptions {
		return { vmmCallMs: this.config.timeouts.vmm_call_ms, log: this.log, onChange: () => this.#saveQuietly() };
	}

	/** Takes over the network that an earlier snpd made; it is given back with the pod. */
	adoptNetwork(record: NetworkRecord): void {
		const network = PodNetwork.adopt(record, this.#networkOptions());
		this.#scope.defer(`network of ${record.path}`, () => network.close());
		this.network = network;
	}

	async #createFurther(request: CreateRequest, spec: OciSpec, abort: AbortController): Promise<void> {
		const machine = this.machine();
		const scope = this.#scope.child(`container ${request.id}`);
		try {
			const { container, disk } = this.#newContainer(request, spec, scope, abort.signal);
			const { id, path } = await disk;
			const made = await container;
			const slot = await this.timeline.step("add-disk", async () => {
				const device = await machine.vmm.client.addDisk({ id, path, readonly: true }, { timeoutMs: this.config.timeouts.vmm_call_ms });
				scope.defer(`disk ${id}`, () => this.#removeDisk(id));
				if (device === undefined) throw new ShimError("vmm.api", `the hypervisor does not say where disk ${id} is`);
				const slot = slotOfBdf(device.bdf);
				if (slot === undefined)
					throw new ShimError("vmm.api", `the hypervisor put disk ${id} at ${device.bdf}, where the guest agent can't find it`);
				return slot;
			});
			await this.#prepare(made, slot, abort.signal);
		} catch (error) {
			abort.abort(error);
			this.containers.delete(request.id);
			await this.#undo(scope);
			this.#saveQuietly();
			this.#noticeEmpty(request.id);
			throw error;
		}
	}

	/** Registers a container and begins to make its image; both are owned by `scope`. */
	#newContainer(
		request: CreateRequest,
		spec: OciSpec,
		scope: Scope,
		signal: AbortSignal,
	): { container: Promise<Container>; disk: Promise<ContainerDisk> } {
		const images = this.#services.images(this.config);
		const disk = this.timeline.step("rootfs-image", async () => {
			const image = await images.prepare({
				mounts: request.rootfs,
				rootfsDir: resolve(request.bundle, spec.root.path),
				owner: this.identity.key,
				name: request.id,
				scope,
				signal,
			});
			return { id: `disk${this.nextNumber()}`, path: image.path };
		});
		const container = disk.then((found) => {
			signal.throwIfAborted();
			const { id, bundle, stdio } = request;
			const made = new Container({ id, bundle, spec, stdio, disk: found, scope }, this);
			this.containers.set(id, made);
			return made;
		});
		container.catch(() => undefined);
		return { container, disk };
	}

	/** Registers the container that stands for the pod: it needs no image. */
	#newSandboxContainer(request: CreateRequest, spec: OciSpec, scope: Scope): { container: Promise<Container>; disk: undefined } {
		const { id, bundle, stdio } = request;
		const made = new SandboxContainer({ id, bundle, spec, stdio, scope }, this);
		this.containers.set(id, made);
		return { container: Promise.resolve(made), disk: undefined };
	}

	async #prepare(container: Container, slot: string, signal: AbortSignal): Promise<void> {
		this.save();
		container.scope.defer(`stdio of container ${container.id}`, () => container.releaseStdio());
		await container.prepare(slot, signal);
		this.save();
	}

	#createSandbox(hostname: string, signal: AbortSignal): Promise<void> {
		return this.machine().agent.createSandbox(
			{ hostname, dns: [], storages: [shmStorage()], sandbox_pidns: false, sandbox_id: this.identity.podId },
			{ signal },
		);
	}

	/**
	 * Changes a container's limits; the VM grows before, if it must and may.
	 * @throws ShimError `pod.too-large` for a limit that the VM can't hold
	 */
	update(containerId: string, resources: OciResources): Promise<void> {
		return this.#mailbox.run(async () => {
			const container = this.container(containerId);
			const limits = limitsOf(resources, container.limits);
			const others = [...this.containers.values()].filter((other) => other !== container);
			await growVm(this, container.id, limits, [limits, ...others.map((other) => other.limits)]);
			await container.update(resources);
			container.newLimits = limits;
			this.save();
		});
	}

	/** Gives back the disk of a container that an earlier snpd made. */
	async releaseDisk(containerId: string, diskId: string): Promise<void> {
		await this.#removeDisk(diskId);
		await this.#services.images(this.config).release(this.identity.key, containerId);
	}

	async #removeDisk(id: string): Promise<void> {
		if (this.#state.kind !== "running") return;
		await this.#state.machine.vmm.client.removeDevice(id, { timeoutMs: this.config.timeouts.vmm_call_ms });
	}

	/** Closes a scope after a failure; what can't be released is logged, since the first failure is what the caller must hear. */
	async #undo(scope: Scope): Promise<void> {
		try {
			await scope.close();
		} catch (error) {
			this.log.error("cleaning up failed", error);
		}
	}

	#saveQuietly(): void {
		try {
			this.save();
		} catch (error) {
			this.log.error("the journal is behind", error);
		}
	}

	/** Takes over a VM that an earlier snpd started, with the containers that the journal knows. */
	adopt(machine: Machine, release: () => void | Promise<void>): void {
		this.#scope.defer("pod folder", () => this.journal.remove());
		const { cgroup } = this;
		if (cgroup !== undefined) this.#scope.defer(`control group ${cgroup.path}`, () => cgroup.remove());
		this.#scope.defer("VM", release);
		this.transition({ kind: "running", machine });
		this.#watchDeath(machine);
		this.network?.follow(machine);
		for (const container of this.containers.values()) container.resume();
	}

	/** A scope for what belongs to an adopted container. */
	adoptScope(name: string): Scope {
		return this.#scope.child(name);
	}

	#watchDeath(machine: Machine): void {
		this.#watchOom(machine).catch((error: unknown) => this.log.debug("no more out-of-memory events", { reason: explain(error) }));
		void machine.died.then((death) => {
			if (this.#state.kind !== "running") return;
			this.log.error("the pod is lost", death);
			this.transition({ kind: "lost", death });
			this.#saveQuietly();
		});
	}

	async #watchOom(machine: Machine): Promise<void> {
		while (this.#state.kind === "running") {
			const containerId = await machine.agent.oomEvent();
			if (this.containers.has(containerId)) this.publish({ kind: "oom", containerId });
		}
	}

	/**
	 * Forgets a process that has ended: an exec, or with an empty `execId` a whole container; the VM goes with the last container.
	 * @param replay the call may have had its effect with an earlier snpd
	 */
	async delete(containerId: string, execId: string, replay: boolean): Promise<DeleteResult> {
		const earlier = this.tombstones.find((stone) => stone.containerId === containerId && stone.execId === execId);
		if (replay && earlier !== undefined) return earlier;
		const container = this.container(containerId);
		if (execId !== "") {
			const result = container.deleteExec(execId);
			this.#bury(containerId, execId, result);
			return result;
		}
		container.init.require(["created", "stopped"], "delete");
		// Deleted while it is made: its maker has given up.
		if (this.#making?.id === containerId)
			this.#making.abort.abort(new ShimError("wait.canceled", `container ${containerId} is being deleted`));
		return this.#mailbox.run(async () => {
			if (!this.containers.has(containerId)) throw new ShimError("container.not-found", `container ${containerId} is deleted already`);
			const result = await this.#removeContainer(container);
			this.publish({ kind: "delete", containerId, execId, pid: result.pid, status: result.exitStatus, atMs: result.exitedAtMs });
			return result;
		});
	}

	/** Gives back all that a container has, running or not; with the last one the VM goes too. */
	async #removeContainer(container: Container): Promise<DeleteResult> {
		const result = container.result(container.init);
		const { id } = container;
		if (this.containers.size === 1) {
			await this.#release();
		} else {
			if (this.#state.kind === "running" && !container.runsNothing) await this.#removeFromGuest(this.#state.machine, id);
			await this.#undo(container.scope);
		}
		this.containers.delete(id);
		this.#bury(id, "", result);
		this.#noticeEmpty(id);
		return result;
	}

	#noticeEmpty(lastId: string): void {
		if (this.containers.size === 0 && lastId !== this.identity.podId) this.#services.abandoned(this);
	}

	async #removeFromGuest(machine: Machine, containerId: string): Promise<void> {
		try {
			await machine.agent.removeContainer(containerId);
		} catch (error) {
			if (!(error instanceof ShimError && error.code === "not-found"))
				this.log.error("the guest keeps a container", error, { container: containerId });
		}
	}

	#bury(containerId: string, execId: string, result: DeleteResult): void {
		this.tombstones = [...this.tombstones, { containerId, execId, ...result }].slice(-MAX_TOMBSTONES);
		if (this.#state.kind === "running" || this.#state.kind === "lost") this.#saveQuietly();
	}

	/** Ends the VM and gives everything back. What can't be given back is logged: the pod is gone for its users either way. */
	async #release(): Promise<void> {
		if (this.#state.kind === "gone") return;
		this.transition({ kind: "gone" });
		for (const container of this.containers.values()) container.releaseStdio();
		await this.#undo(this.#scope);
		this.journal.remove();
	}

	/** Removes the pod with all that it has, whatever its state, and ends its keeper. */
	async destroy(): Promise<void> {
		this.#making?.abort.abort(new ShimError("wait.canceled", `pod ${this.identity.podId} is being removed`));
		await this.#mailbox.run(async () => {
			await this.#release();
			this.containers.clear();
		});
		this.#mover?.end();
	}

	/**
	 * Removes one container that containerd has given up, running or not, or while it is being made; its own clean-up tells the events.
	 * containerd asks for it after an ordinary Delete as well: the others of the pod go on.
	 * @returns what is known of its end
	 */
	async discard(containerId: string): Promise<DeleteResult | undefined> {
		const known = (): DeleteResult | undefined =>
			this.tombstones.findLast((entry) => entry.containerId === containerId && entry.execId === "");
		const made = this.#making?.id === containerId;
		if (!made && !this.containers.has(containerId)) return known();
		if (made) this.#making?.abort.abort(new ShimError("wait.canceled", `container ${containerId} is being removed`));
		return this.#mailbox
			.run(async () => {
				const container = this.containers.get(containerId);
				return container === undefined ? known() : await this.#removeContainer(container);
			})
			.catch((error: unknown) => {
				throw asShimError(error, "internal", `removing container ${containerId}`);
			});
	}
}
