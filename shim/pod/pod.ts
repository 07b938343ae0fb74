/** A pod: one VM, its containers, and the order in which they come and go. */

import { refuseHostNamespaces } from "../agent/guest-spec.ts";
import { hooksLeftOut, readSpec } from "../agent/oci-spec.ts";
import type { OciResources, OciSpec } from "../agent/oci-spec.ts";
import { asShimError, ShimError } from "../base/errors.ts";
import { deferred, withDeadline } from "../base/deadline.ts";
import type { Log } from "../base/log.ts";
import { Mailbox } from "../base/mailbox.ts";
import type { Scope } from "../base/scope.ts";
import type { Config } from "../config/schema.ts";
import type { HostCgroup } from "../host/cgroups.ts";
import { nodeSize } from "../host/node.ts";
import type { VmMemory } from "../memory/vm-memory.ts";
import type { RootfsImages } from "../storage/images.ts";
import { checkAnnotations } from "./confidential.ts";
import type { Container } from "./container.ts";
import { reportDamage } from "./damage.ts";
import { growForPages, growVm } from "./growth.ts";
import { Journal } from "./journal.ts";
import { KeeperEnd } from "./keeper-end.ts";
import { readyPlan } from "./launch.ts";
import type { LeavingNetworks } from "./leaving-networks.ts";
import type { Machine } from "./machine.ts";
import { beginContainer, finishContainer, makeContainer, prepareImage } from "./making.ts";
import type { MakingPod } from "./making.ts";
import { Makings } from "./makings.ts";
import { isSandboxContainer, planPod } from "./plan.ts";
import type { PodPlan } from "./plan.ts";
import type { PodState } from "./pod-state.ts";
import type { CreateRequest, DeleteResult, Mover, PodEvent, PodIdentity, PublishEvent } from "./ports.ts";
import type { PodPool } from "./pool/node-pool.ts";
import type { PoolVm } from "./pool/vm.ts";
import { podRecord } from "./record.ts";
import { SandboxApi } from "./sandbox-api.ts";
import type { SandboxApiPod } from "./sandbox-api.ts";
import { Sandbox } from "./sandbox.ts";
import type { SandboxOwner } from "./sandbox.ts";
import { limitsOf } from "./sizing.ts";
import type { TemplateUse } from "./snapshot/templates.ts";
import { Timeline } from "./timeline.ts";
import { Tombstones } from "./tombstones.ts";
import { undo } from "./undo.ts";
import type { PodVolumes } from "./volumes.ts";

/** What a pod needs of the process it lives in. */
export interface PodServices {
	readonly publish: PublishEvent;
	readonly images: (config: Config) => RootfsImages;
	/** Namespaces that others of the node's pods are leaving. */
	readonly leavingNetworks: LeavingNetworks;
	/** Called when the last container has gone, and the pod's first one before it. */
	readonly abandoned: (pod: Pod) => void;
	/** VMs that were booted ahead; undefined: none are. */
	readonly pool?: PodPool;
	/** Has the node's memory controller look after a VM. */
	readonly lookAfter: (vm: VmMemory) => () => void;
	readonly log: Log;
}

/** How long work that was aborted may take to notice. */
const GIVE_UP_MS = 10_000;
/** How long the guest keeps what a deleted container had, unless another comes: the pod's end often comes next, and spares the guest the work. */
const CLEAR_DELAY_MS = 100;

const alreadyExists = (id: string): ShimError => new ShimError("container.exists", `container ${id} exists already`);

/** One pod. */
export class Pod implements MakingPod, SandboxOwner, SandboxApiPod {
	readonly identity: PodIdentity;
	readonly folder: string;
	readonly config: Config;
	readonly log: Log;
	readonly journal: Journal;
	readonly containers = new Map<string, Container>();
	/** Deleted ones that the guest is still giving back: a later snpd goes on with it. */
	readonly leaving = new Set<Container>();
	timeline = new Timeline();
	readonly tombstones = new Tombstones();
	readonly sandbox: Sandbox;
	/** The calls of containerd's Sandbox API, and what they made. */
	readonly api: SandboxApi;
	readonly keeper: KeeperEnd;
	nextStream = 1;
	readonly #services: PodServices;
	readonly #mailbox: Mailbox;
	readonly #makings: Makings;

	constructor(identity: PodIdentity, folder: string, config: Config, services: PodServices) {
		this.identity = identity;
		this.folder = folder;
		this.config = config;
		this.log = services.log.with({ namespace: identity.namespace, pod: identity.podId });
		this.journal = new Journal(folder);
		this.#services = services;
		this.#mailbox = new Mailbox(`pod ${identity.podId}`);
		this.#makings = new Makings(identity.podId);
		this.keeper = new KeeperEnd(identity.podId);
		this.sandbox = new Sandbox(this);
		this.api = new SandboxApi(this);
	}

	get podId(): string {
		return this.identity.podId;
	}

	get namespace(): string {
		return this.identity.namespace;
	}

	/** Whose images the containers' are. */
	get owner(): string {
		return this.identity.key;
	}

	get images(): RootfsImages {
		return this.#services.images(this.config);
	}

	get leavingNetworks(): LeavingNetworks {
		return this.#services.leavingNetworks;
	}

	get state(): PodState {
		return this.sandbox.state;
	}

	get pciSegments(): number {
		return this.sandbox.pciSegments;
	}

	/** The VMM's PID; 0 while there is none. */
	get pid(): number {
		return this.sandbox.vmm?.pid ?? 0;
	}

	get cgroup(): HostCgroup | undefined {
		return this.sandbox.cgroup;
	}

	/** True for a pod that lives without containers, until containerd ends it by its Sandbox API. */
	get standsAlone(): boolean {
		return this.api.record !== undefined;
	}

	/** The kernel parameters of a Kubernetes pod: its sandbox, or its sandbox container, names them. */
	get sysctls(): Readonly<Record<string, string>> {
		const sandbox = [...this.containers.values()].find((container) => container.runsNothing);
		return this.api.record?.sysctls ?? sandbox?.spec.linux?.sysctl ?? {};
	}

	get hasScratch(): boolean {
		return this.sandbox.hasScratch;
	}

	get volumes(): PodVolumes {
		return this.sandbox.volumes;
	}

	machine(): Machine {
		return this.sandbox.machine();
	}

	mover(): Mover {
		return this.keeper.mover;
	}

	keeperHere(): Promise<undefined> {
		return this.keeper.here;
	}

	endAlone(id: string): void {
		const others = [...this.containers.keys()].filter((other) => other !== id);
		const busy = !this.#makings.none || this.volumes.writers().length > 0;
		if (others.length === 0 && !busy) this.sandbox.end();
	}

	nextNumber(): number {
		return this.nextStream++;
	}

	save(): void {
		this.journal.write(podRecord(this));
	}

	takeFolder(folder: string): void {
		this.journal.takeFolder(folder, podRecord(this));
	}

	/** A VM of the pool of the kind that the plan asks for, which is the caller's from now on; undefined: none is there. */
	warmVm(plan: PodPlan): Promise<PoolVm | undefined> {
		return this.#services.pool?.take(plan) ?? Promise.resolve(undefined);
	}

	template(plan: PodPlan): Promise<TemplateUse | undefined> {
		return this.#services.pool?.template(plan) ?? Promise.resolve(undefined);
	}

	warmFailed(error: unknown): void {
		this.#services.pool?.failed(error);
	}

	/** Writes the journal; a failure is logged. */
	saveQuietly(): void {
		try {
			this.save();
		} catch (error) {
			this.log.error("the journal is behind", error);
		}
	}

	lookAfter(vm: VmMemory): () => void {
		return this.#services.lookAfter(vm);
	}

	publish(event: PodEvent): void {
		this.#services.publish(this.identity, event);
	}

	/** The guest says what of the node's was changed. */
	async damaged(text: string): Promise<void> {
		await reportDamage(text, [...this.containers.values()], this);
	}

	imageDamaged(file: string): void {
		this.images.suspect(file);
	}

	/** The VM has ended by itself: so has a sandbox. */
	vmEnded(): void {
		this.api.end();
	}

	/** The guest has ended a process of a container for want of memory. */
	outOfMemory(containerId: string): void {
		if (this.containers.has(containerId)) this.publish({ kind: "oom", containerId });
	}

	/** The pod's keeper is connected (again). */
	attach(mover: Mover): void {
		this.keeper.attach(mover);
		if (this.state.kind !== "running") return;
		const containers = [...this.containers.values()];
		for (const container of containers) container.adoptStreams();
		mover.lingerOthers(new Set(containers.flatMap((container) => container.streamNumbers)));
		this.keeper.ready();
	}

	/** True for a container that is here, is being made, or was here and is remembered. */
	knows(containerId: string): boolean {
		const making = this.#makings.find(containerId) !== undefined;
		return making || this.containers.has(containerId) || this.tombstones.knows(containerId);
	}

	/** @throws ShimError `container.not-found` */
	container(id: string): Container {
		const container = this.containers.get(id);
		if (container === undefined) throw new ShimError("container.not-found", `pod ${this.identity.podId} has no container ${id}`);
		return container;
	}

	/** True when nothing is in the pod, and nothing on its way there. */
	get empty(): boolean {
		return this.containers.size === 0 && this.#makings.none;
	}

	/**
	 * Makes a container, and the pod's VM with its first one.
	 * @param replay the call may have had its effect with an earlier snpd
	 * @returns the PID to report
	 */
	async create(request: CreateRequest, replay: boolean): Promise<number> {
		const { id } = request;
		const earlier = this.#makings.find(id);
		if (earlier !== undefined) {
			if (!replay) throw alreadyExists(id);
			await earlier;
			return this.pid;
		}
		try {
			return await this.#makings.run(id, (abort) => this.#undisturbed(() => this.#make(request, abort, replay)));
		} catch (error) {
			if (this.state.kind !== "new") this.#noticeEmpty(id);
			throw error;
		}
	}

	/** No VM is booted ahead meanwhile. */
	#undisturbed<T>(start: () => Promise<T>): Promise<T> {
		return this.#services.pool?.during(start) ?? start();
	}

	/** The first container is made in its turn. Others come and go while the image of a further one is made. */
	async #make(request: CreateRequest, abort: AbortController, replay: boolean): Promise<number> {
		const { id, bundle, rootfs, stdio } = request;
		const rest = await this.exclusive(async () => {
			if (this.containers.has(id)) {
				if (replay) return "nothing";
				throw alreadyExists(id);
			}
			if (this.state.kind === "lost") throw this.state.death;
			abort.signal.throwIfAborted();
			await this.#clearLeaving();
			if (this.state.kind !== "new") return "container";
			await this.#createFirst(request, abort);
			return "words";
		});
		if (rest === "nothing") return this.pid;
		if (rest === "container") await this.#createFurther(request, abort);
		this.publish({ kind: "create", containerId: id, bundle, rootfs, stdio, pid: this.pid });
		this.log.info("container created", { container: id });
		return this.pid;
	}

	/** Runs work after all earlier calls that change the pod. */
	exclusive<T>(work: () => Promise<T>): Promise<T> {
		return this.#mailbox.run(work);
	}

	/** Runs work that the pod's removal aborts. */
	making<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
		return this.#makings.run(this.podId, (abort) => this.#undisturbed(() => work(abort.signal)));
	}

	/** Aborts what is being made, since the pod is being stopped, or removed; waits for its end, but not for ever. */
	async giveUp(what: string): Promise<void> {
		this.#makings.abort(what);
		await this.#waitForMakings();
	}

	async #waitForMakings(id?: string): Promise<void> {
		await this.#makings.ended(GIVE_UP_MS, id).catch((error: unknown) => this.log.error("cleaning up goes on", error));
	}

	/** What a container is to be. @throws ShimError `spec.invalid` */
	async #readSpec({ id, bundle }: CreateRequest): Promise<OciSpec> {
		const spec = await this.timeline.step("read-spec", () => this.readSpec(bundle));
		const hooks = hooksLeftOut(spec);
		if (hooks.length > 0) this.log.warn("hooks are not run: there is no container on the host", { container: id, hooks: hooks.join(", ") });
		return spec;
	}

	/** A container's specification. @throws ShimError `spec.invalid` */
	async readSpec(bundle: string): Promise<OciSpec> {
		return this.api.complete(await readSpec(bundle));
	}

	/** A sandbox, and a container whose image is made while its VM starts. If either fails, all is undone. */
	async #createFirst(request: CreateRequest, abort: AbortController): Promise<void> {
		const { sandbox } = this;
		const spec = await this.#readSpec(request);
		const planned = planPod(this.podId, spec, this.config, this.folder, nodeSize());
		refuseHostNamespaces(spec, 0, isSandboxContainer(spec) ? "pod" : "container");
		const plan = await readyPlan(planned);
		let making: Promise<unknown> = Promise.resolve();
		try {
			const scope = sandbox.begin(plan, await this.warmVm(planned));
			const { container, disk } = beginContainer(this, request, spec, scope, abort.signal);
			making = container;
			const address = await sandbox.boot(plan, disk, abort.signal);
			const first = await container;
			if (first.disk !== null) first.disk = { ...first.disk, address };
			await finishContainer(this, first, request, abort.signal);
			await sandbox.placed();
			sandbox.keep();
		} catch (error) {
			abort.abort(error);
			await sandbox.undo();
			await this.#settled(making);
			this.containers.clear();
			throw error;
		}
	}

	/** What is given up late finds its scope closed, so nothing leaks when this wait is. */
	async #settled(making: Promise<unknown>): Promise<void> {
		const wait = { what: `the container of pod ${this.identity.podId} that was being made`, timeoutMs: GIVE_UP_MS };
		await withDeadline(wait, () => Promise.allSettled([making])).catch((error: unknown) => this.log.error("cleaning up goes on", error));
	}

	async #createFurther(request: CreateRequest, abort: AbortController): Promise<void> {
		const { id } = request;
		const spec = await this.#readSpec(request);
		this.machine();
		checkAnnotations(`container ${id}`, spec.annotations ?? {}, this.config.confidential.mode);
		const scope = this.sandbox.scope.child(`container ${id}`);
		const give = async (error: unknown): Promise<never> => {
			abort.abort(error);
			this.containers.delete(id);
			await undo(scope, this.log);
			throw error;
		};
		const image = await prepareImage(this, request, spec, scope, abort.signal).catch(give);
		await this.exclusive(async () => {
			try {
				abort.signal.throwIfAborted();
				await this.#clearLeaving();
				await this.sandbox.memory?.need();
				await growForPages(this, this.sandbox, id, spec, this.containers.values());
				await makeContainer(this, { request, spec, image }, scope, abort.signal);
			} catch (error) {
				await give(error).finally(() => this.#saveIfThere());
			}
		});
	}

	/**
	 * Changes a container's limits; the VM grows before, if it must and may.
	 * @throws ShimError `pod.too-large` for a limit that the VM can't hold, `confidential.size` for one that a confidential pod's can't
	 */
	update(containerId: string, resources: OciResources): Promise<void> {
		return this.#mailbox.run(async () => {
			const container = this.container(containerId);
			const limits = limitsOf(resources, container.limits);
			const others = [...this.containers.values()].filter((other) => other !== container);
			const change = { before: container.limits, changed: limits };
			await growVm(this, this.sandbox, container.id, change, [limits, ...others.map((other) => other.limits)]);
			await container.update(resources);
			container.newLimits = limits;
			this.save();
		});
	}

	/** Takes over a VM that an earlier snpd started, with the containers that the journal knows. */
	adopt(machine: Machine, release: () => void | Promise<void>): void {
		this.sandbox.adopt(machine, release);
		for (const container of this.containers.values()) container.resume();
	}

	/** A scope for what belongs to an adopted container. */
	adoptScope(name: string): Scope {
		return this.sandbox.scope.child(name);
	}

	/**
	 * Forgets a process that has ended: an exec, or with an empty `execId` a whole container; the VM goes with the last container.
	 * @param replay the call may have had its effect with an earlier snpd
	 */
	async delete(containerId: string, execId: string, replay: boolean): Promise<DeleteResult> {
		const earlier = this.tombstones.find(containerId, execId);
		if (replay && earlier !== undefined) return earlier;
		if (execId !== "") {
			const result = this.container(containerId).deleteExec(execId);
			this.#bury(containerId, execId, result);
			return result;
		}
		const ended = (): Container => {
			const container = this.container(containerId);
			container.init.require(["created", "stopped"], "delete");
			return container;
		};
		// One that is being made may not be known yet: its making is given up, and what of it is made by then goes.
		if (this.#makings.abort("deleted", containerId)) await this.#waitForMakings(containerId);
		else ended();
		const answer = deferred<DeleteResult>();
		const removed = (result: DeleteResult): void => {
			this.publish({ kind: "delete", containerId, execId, pid: result.pid, status: result.exitStatus, atMs: result.exitedAtMs });
			answer.resolve(result);
		};
		this.#mailbox.run(async () => await this.#removeContainer(ended(), removed)).catch((error: unknown) => answer.reject(error));
		return answer.promise;
	}

	/**
	 * Gives back all that a container has, running or not; with the last one the VM goes too.
	 * @param removed called as soon as its users need not wait any more: one of several is gone for them before the guest has cleared it away
	 */
	async #removeContainer(container: Container, removed: (result: DeleteResult) => void = () => undefined): Promise<DeleteResult> {
		const result = container.result(container.init);
		const { id } = container;
		const last = this.containers.size === 1 && this.#makings.none && !this.standsAlone;
		if (last) await this.release();
		// What it wrote to volumes of the node must be there when its users hear that it is gone: their next step may be the VM's end.
		const written = !last && this.volumes.writers().includes(id);
		if (written) await this.#clear(container);
		this.containers.delete(id);
		if (!last && !written) this.leaving.add(container);
		this.#bury(id, "", result);
		removed(result);
		if (!last && !written) {
			container.releaseStdio();
			this.#clearSoon();
		}
		this.#noticeEmpty(id);
		return result;
	}

	#clearSoon(): void {
		setTimeout(() => {
			this.exclusive(() => this.#clearLeaving()).catch((error: unknown) => this.log.error("clearing a container away failed", error));
		}, CLEAR_DELAY_MS).unref();
	}

	async #clearLeaving(): Promise<void> {
		for (const container of this.leaving) await this.#clear(container);
	}

	/** Clears away what the guest and the VM have of a container. */
	async #clear(container: Container): Promise<void> {
		await this.timeline.step("container-remove", async () => {
			if (this.state.kind === "running" && !container.runsNothing) await this.#removeFromGuest(this.state.machine, container.id);
			await undo(container.scope, this.log);
		});
		this.leaving.delete(container);
		this.#saveIfThere();
	}

	#saveIfThere(): void {
		if (this.state.kind === "running" || this.state.kind === "lost") this.saveQuietly();
	}

	#noticeEmpty(lastId: string): void {
		if (this.empty && lastId !== this.identity.podId && !this.standsAlone) this.#services.abandoned(this);
	}

	/** What containers wrote to disks of volumes and shared folders must be there when the VM goes: the guest unmounts them first. */
	async #writeOut(): Promise<void> {
		if (this.state.kind !== "running") return;
		const { machine } = this.state;
		await Promise.all(this.volumes.writers().map((id) => this.#removeFromGuest(machine, id)));
	}

	async #removeFromGuest(machine: Machine, containerId: string): Promise<void> {
		try {
			await machine.agent.removeContainer(containerId);
		} catch (error) {
			if (!this.sandbox.ending && !(error instanceof ShimError && error.code === "not-found"))
				this.log.error("the guest keeps a container", error, { container: containerId });
		}
	}

	#bury(containerId: string, execId: string, result: DeleteResult): void {
		this.tombstones.add(containerId, execId, result);
		this.#saveIfThere();
	}

	/** Ends the VM and gives everything back. */
	async release(): Promise<void> {
		if (this.state.kind === "gone") return;
		await this.#writeOut();
		this.sandbox.transition({ kind: "gone" });
		for (const container of this.containers.values()) container.releaseStdio();
		await this.sandbox.release();
	}

	/** Removes the pod with all that it has, whatever its state, and ends its keeper. */
	async destroy(): Promise<void> {
		await this.giveUp("removed");
		const end = async (): Promise<void> => {
			await this.release();
			this.api.end();
			this.containers.clear();
		};
		await this.#mailbox.run(end, { always: true });
		this.keeper.end();
	}

	/**
	 * Removes one container that containerd has given up, running or not, or while it is being made; its own clean-up tells the events.
	 * containerd asks for it after an ordinary Delete as well: the others of the pod go on.
	 * @returns what is known of its end
	 */
	async discard(containerId: string): Promise<DeleteResult | undefined> {
		const known = (): DeleteResult | undefined => this.tombstones.find(containerId, "");
		const made = this.#makings.abort("removed", containerId);
		if (!made && !this.containers.has(containerId)) return known();
		if (made) await this.#waitForMakings(containerId);
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
