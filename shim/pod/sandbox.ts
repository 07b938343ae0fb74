/**
 * A pod's sandbox: its VM, its network and what the guest keeps for all containers. It is made before any container is, lives without one, and
 * everything in it has one scope.
 */

import { readdirSync, rmSync } from "node:fs";
import { join } from "node:path";

import { deviceSource, scratchStorage, shmStorage } from "../agent/storages.ts";
import type { StorageRequest } from "../agent/storages.ts";
import { explain, ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { Scope } from "../base/scope.ts";
import type { Config } from "../config/schema.ts";
import { cgroupPath, HostCgroup } from "../host/cgroups.ts";
import { setOomScore } from "../host/processes.ts";
import { VmMemory } from "../memory/vm-memory.ts";
import { makeScratchFile, removeScratchFile } from "../storage/scratch-file.ts";
import { AGENT_RELEASE, bootMachine, CGROUP_RELEASE, SCRATCH_DISK, VM_RELEASE } from "./boot.ts";
import type { BootContext, BootDisk } from "./boot.ts";
import type { VmSize } from "./growth.ts";
import { writeInitdataDisk } from "./initdata-disk.ts";
import type { Journal } from "./journal.ts";
import type { LeavingNetworks } from "./leaving-networks.ts";
import type { Machine } from "./machine.ts";
import { memoryPort } from "./memory-port.ts";
import type { PodPlan } from "./plan.ts";
import { PodNetwork } from "./pod-network.ts";
import { takeMachine } from "./pool/take.ts";
import type { TakenMachine } from "./pool/take.ts";
import type { PoolVm } from "./pool/vm.ts";
import { quickly } from "./quick-start.ts";
import type { QuickWay } from "./quick-start.ts";
import { Rest } from "./rest.ts";
import { startMachine } from "./snapshot/restore.ts";
import type { TemplateUse } from "./snapshot/templates.ts";
import type { NetworkRecord, PodNetworkOptions } from "./pod-network.ts";
import { checkTransition } from "./pod-state.ts";
import type { PodState } from "./pod-state.ts";
import type { Timeline } from "./timeline.ts";
import { undo } from "./undo.ts";
import { PodVolumes } from "./volumes.ts";
import type { VolumeRecords } from "./volumes.ts";

/** What a sandbox needs of its pod. */
export interface SandboxOwner {
	readonly podId: string;
	readonly namespace: string;
	/** The pod's key. */
	readonly owner: string;
	readonly folder: string;
	readonly config: Config;
	readonly log: Log;
	readonly journal: Journal;
	readonly timeline: Timeline;
	/** The node's pods whose networks may still be there. */
	readonly leavingNetworks: LeavingNetworks;
	/** PCI segments of the VM. */
	readonly pciSegments: number;
	/** The control group of the VMM. */
	readonly cgroup: HostCgroup | undefined;
	/** The guest has put a file system on the pod's writable disk. */
	readonly hasScratch: boolean;
	/** A number that nothing in the pod had before. */
	nextNumber(): number;
	/** Writes the journal. @throws ShimError `journal.write` */
	save(): void;
	/** Makes the folder of a VM that was booted ahead the pod's, with its journal in it. @throws ShimError `journal.write` */
	takeFolder(folder: string): void;
	/** A VM of the pool could not be made the pod's. */
	warmFailed(error: unknown): void;
	/** A template for the pod's VM; undefined: it is booted. */
	template(plan: PodPlan): Promise<TemplateUse | undefined>;
	/** Writes the journal; a failure is logged. */
	saveQuietly(): void;
	/** The VM has ended by itself. */
	vmEnded(): void;
	/** The guest has ended a process of this container for want of memory. */
	outOfMemory(containerId: string): void;
	/** The guest says what of the node's was changed. */
	damaged(text: string): Promise<void>;
	/** Has the node's memory controller look after a VM. @returns how to end it */
	lookAfter(vm: VmMemory): () => void;
}

const BYTES_PER_MIB = 1024 * 1024;
/** Names of releases. */
const POD_FOLDER = "pod folder";
const NETWORK_RELEASE = "network";
const POOL_CGROUP_RELEASE = "control group in the pool";

/** The pod's first calls go first. */
const LEAVE_POOL_MS = 100;

/** What a guest may tell of changed disks: it is not trusted with the log. */
const MAX_DAMAGE = 64;

/** The sandbox of one pod. */
export class Sandbox {
	/** Owns the sandbox once it is made; scopes of containers are its children. */
	readonly scope: Scope;
	/** The VMM's process, from the moment it exists. */
	vmm: { readonly pid: number; readonly startTime: string } | null = null;
	/** What the VM has, and what it may grow to; known from its boot on. */
	size: VmSize | undefined;
	/** Its memory, while it runs. */
	memory: VmMemory | undefined;
	/** PCI segments of the VM. */
	pciSegments = 1;
	/** The control group of the VMM, once it is decided. */
	cgroup: HostCgroup | undefined;
	/** The control group that the VM was booted ahead in, while it may be there. */
	poolCgroup: string | null = null;
	/** The pod's network, from before its first effect; null: loopback alone. */
	network: PodNetwork | null = null;
	/** The file of the pod's writable disk; null when what is written stays in memory. */
	scratch: string | null = null;
	/** What containers mount from the host. */
	volumes: PodVolumes;
	/** True once the VM is being ended on purpose. */
	ending = false;
	/** Settles when nothing is left of what `release` leaves for later. */
	left: Promise<void> = Promise.resolve();
	#networkEnd: Promise<void> | undefined;
	#endMemory: () => void = () => undefined;
	readonly #owner: SandboxOwner;
	#state: PodState = { kind: "new" };
	/** Owns the sandbox while it is made. */
	#making: Scope | undefined;
	#initdata: BootDisk | undefined;
	/** A VM of the pool that is becoming the pod's, and what was in its folder before it was the pod's. */
	#warm: PoolVm | undefined;
	/** The move of a VM of the pool into the pod's control group. */
	#moved: Promise<void> = Promise.resolve();
	#warmFiles: readonly string[] = [];

	constructor(owner: SandboxOwner) {
		this.#owner = owner;
		this.scope = new Scope(`pod ${owner.podId}`);
		this.volumes = new PodVolumes(owner);
	}

	get state(): PodState {
		return this.#state;
	}

	/** Changes the state. @throws ShimError `pod.state` when the change is not allowed */
	transition(next: PodState): void {
		checkTransition(this.#owner.podId, this.#state.kind, next.kind);
		this.#owner.log.info("pod state", { from: this.#state.kind, to: next.kind });
		this.#state = next;
	}

	/** The running VM. @throws ShimError `pod.lost` when it is gone, `pod.state` when there is none */
	machine(): Machine {
		if (this.#state.kind === "running") return this.#state.machine;
		if (this.#state.kind === "lost") throw this.#state.death;
		throw new ShimError("pod.state", `pod ${this.#owner.podId} is ${this.#state.kind}: it has no VM to talk to`);
	}

	/**
	 * Begins to make the sandbox: the pod's folder, its journal, its network's namespace. Whatever fails from here on, `undo` gives all of it back.
	 * @param warm a VM of the pool that the pod is to have: it is the pod's from here on
	 * @returns the scope that owns what is made until `keep`
	 * @throws ShimError `journal.write`, `network.setup`, `network.unsupported`
	 */
	begin(plan: PodPlan, warm?: PoolVm): Scope {
		const scope = new Scope(`boot of pod ${this.#owner.podId}`);
		this.#making = scope;
		scope.defer(POD_FOLDER, () => this.#owner.journal.remove());
		this.#warm = warm;
		this.cgroup = plan.cgroupsPath === "" ? undefined : new HostCgroup(cgroupPath(plan.cgroupsPath));
		if (warm !== undefined) this.#ownWarm(scope, warm);
		this.size = { now: { vcpus: plan.vcpus, memoryMib: plan.memoryMib }, most: plan.most };
		this.pciSegments = plan.pciSegments;
		this.scratch = plan.scratch?.path ?? null;
		this.transition({ kind: "booting" });
		if (warm === undefined) this.#owner.journal.open();
		else this.#takeWarm(warm);
		this.#warnOfSample();
		this.#initdata = plan.confidential === undefined ? undefined : writeInitdataDisk(this.#owner.folder, plan.confidential.initdata);
		this.#ownVolumes(scope);
		if (warm === undefined) this.#ownScratch(scope, plan);
		if (plan.network.kind === "namespace") {
			const network = PodNetwork.open(plan.network.path, plan.vcpus, this.#networkOptions());
			scope.defer(NETWORK_RELEASE, () => network.close());
			this.network = network;
		}
		this.#owner.save();
		return scope;
	}

	/** Its folder becomes the pod's, with all that it has in it: from one moment to the next a new snpd finds the VM there. */
	#takeWarm(warm: PoolVm): void {
		this.vmm = { pid: warm.vmm.pid, startTime: warm.vmm.startTime.toString() };
		this.poolCgroup = warm.cgroup.path;
		this.#warmFiles = readdirSync(warm.vmm.folder);
		this.#owner.takeFolder(warm.vmm.folder);
		warm.movedTo(this.#owner.folder);
	}

	/**
	 * Boots the VM, and has the guest make what containers share; after `begin`.
	 * @param disk what the VM shall have from its start, made meanwhile
	 * @returns the disk's PCI address (`0000:00:1f.0`); empty without a disk
	 * @throws ShimError what a step of the boot throws
	 */
	async boot(plan: PodPlan, disk: Promise<BootDisk> | undefined, signal: AbortSignal): Promise<string> {
		const { network, cgroup } = this;
		const { podId, folder, config, timeline, log } = this.#owner;
		const { machine, diskAddress, scratchAddress, moved } = await this.#start({
			podId,
			folder,
			plan,
			config,
			timeline,
			scope: this.#ownScope(),
			signal,
			log,
			cgroup,
			disk,
			initdata: this.#initdata,
			scratch: this.#warm === undefined ? this.#prepareScratch(plan) : Promise.resolve(undefined),
			network: network === null ? Promise.resolve(undefined) : this.#prepareNetwork(network),
			onVmm: (vmm) => {
				this.vmm = { pid: vmm.pid, startTime: vmm.startTime.toString() };
				this.#owner.save();
			},
		});
		this.transition({ kind: "running", machine });
		this.#moved = this.#warm === undefined ? moved : moved.catch((error: unknown) => this.#notMoved(error));
		this.#moved.catch(() => undefined);
		// The VMM has it open: without a name it goes with the VMM, whatever becomes of this process.
		const scratch = this.#warm === undefined ? plan.scratch : undefined;
		this.#warm = undefined;
		await Promise.all([
			scratch === undefined ? undefined : removeScratchFile(scratch.path),
			network === null ? undefined : timeline.step("guest-network", () => network.tell(machine.agent, { signal })),
			timeline.step("sandbox", () => this.#makeInGuest(plan, machine, scratchAddress, signal)),
		]);
		return diskAddress;
	}

	async #makeInGuest(plan: PodPlan, { agent }: Machine, scratchAddress: string, signal: AbortSignal): Promise<void> {
		const request = {
			hostname: plan.hostname,
			dns: [],
			storages: [shmStorage(), ...this.#scratchStorages(scratchAddress)],
			sandbox_pidns: false,
			sandbox_id: this.#owner.podId,
		};
		await agent.createSandbox(request, { signal });
	}

	/** Boots the VM, makes it a copy of a template, or takes the one of the pool. */
	async #start(context: BootContext): Promise<TakenMachine> {
		const warm = this.#warm;
		const boot = async (own: BootContext): Promise<TakenMachine> => ({ ...(await bootMachine(own)), moved: Promise.resolve() });
		if (warm === undefined) return { ...(await startMachine(context, await this.#owner.template(context.plan))), moved: Promise.resolve() };
		const { plan, signal, log, disk, network } = context;
		const way: QuickWay<TakenMachine> = {
			what: "a VM of the pool",
			start: (entered) => takeMachine(context, warm, entered),
			failed: (error) => this.#owner.warmFailed(error),
			discard: () => this.#discardWarm(plan),
			boot: () => boot({ ...context, scratch: this.#prepareScratch(plan) }),
		};
		return quickly(way, { signal, log, brought: [disk, network] });
	}

	/** Ends a VM of the pool that could not be made the pod's: all is as if the pod had got none. */
	async #discardWarm(plan: PodPlan): Promise<void> {
		const scope = this.#ownScope();
		for (const name of [AGENT_RELEASE, VM_RELEASE, POOL_CGROUP_RELEASE]) await scope.release(name);
		// The boot brings its own.
		scope.take(CGROUP_RELEASE);
		for (const name of this.#warmFiles) rmSync(join(this.#owner.folder, name), { recursive: true, force: true });
		// The waiting VM had one by the same name, and the pod's own has taken its place.
		if (plan.confidential !== undefined) writeInitdataDisk(this.#owner.folder, plan.confidential.initdata);
		this.#warm = undefined;
		this.vmm = null;
		this.poolCgroup = null;
		this.#ownScratch(scope, plan);
		this.#owner.save();
	}

	#notMoved(error: unknown): never {
		this.#owner.warmFailed(error);
		throw error;
	}

	/** Settles when the VM's processes are where the pod's belong. @throws ShimError `host.cgroup` */
	placed(): Promise<void> {
		return this.#moved;
	}

	/** All that was asked for is made: from now on `scope` owns it, and the VM's end is noticed. */
	keep(): void {
		this.#ownScope().moveTo(this.scope);
		this.#making = undefined;
		if (this.poolCgroup !== null) setTimeout(() => void this.leavePool(), LEAVE_POOL_MS).unref();
		this.#follow(this.machine(), this.size === undefined ? undefined : this.size.now.memoryMib * BYTES_PER_MIB);
	}

	/** Removes the group that the VM was in before it was the pod's: it is empty, and nobody waits for it. Never rejects. */
	async leavePool(): Promise<void> {
		if (this.#state.kind !== "running" || this.poolCgroup === null) return;
		const remove = this.scope.take(POOL_CGROUP_RELEASE);
		try {
			// An snpd that was killed may have moved some of its processes and not all.
			const moved = (await this.cgroup?.takeFrom(new HostCgroup(this.poolCgroup))) ?? [];
			for (const pid of moved) setOomScore(pid, 0);
			await remove?.();
			this.poolCgroup = null;
			this.#owner.saveQuietly();
		} catch (error) {
			if (remove !== undefined) this.scope.defer(POOL_CGROUP_RELEASE, remove);
			this.#owner.log.error("a control group of the pool stays", error);
		}
	}

	/** Gives back all that `begin` and `boot` have made; the pod is then as if nothing had been asked. */
	async undo(): Promise<void> {
		if (this.#making !== undefined) await undo(this.#making, this.#owner.log);
		this.#making = undefined;
		this.#warm = undefined;
		this.#moved = Promise.resolve();
		this.vmm = null;
		this.poolCgroup = null;
		this.cgroup = undefined;
		this.size = undefined;
		this.scratch = null;
		this.network = null;
		this.#networkEnd = undefined;
		this.volumes = new PodVolumes(this.#owner);
		this.#state = { kind: "new" };
	}

	/**
	 * Takes over a VM that an earlier snpd started. The journal goes last, in `release`: after it nobody knows of what is still to be given back.
	 * @param release ends it
	 */
	adopt(machine: Machine, release: () => void | Promise<void>): void {
		const { cgroup } = this;
		if (cgroup !== undefined) this.scope.defer(CGROUP_RELEASE, () => cgroup.remove());
		if (this.poolCgroup !== null) {
			const left = new HostCgroup(this.poolCgroup);
			this.scope.defer(POOL_CGROUP_RELEASE, () => left.remove());
			// The move was on its way: who is in the pod's group already has perhaps still the score of a VM that nobody uses.
			for (const pid of cgroup?.processes() ?? []) setOomScore(pid, 0);
		}
		this.scope.defer(VM_RELEASE, release);
		this.#ownVolumes(this.scope);
		this.transition({ kind: "running", machine });
		this.#warnOfSample();
		this.volumes.copies.resume(machine);
		void this.leavePool();
		this.#follow(machine, undefined);
	}

	/** Takes over the network that an earlier snpd made; it is given back with the pod. */
	adoptNetwork(record: NetworkRecord): void {
		const network = PodNetwork.adopt(record, this.#networkOptions());
		this.scope.defer(NETWORK_RELEASE, () => network.close());
		this.network = network;
	}

	/** Takes over what an earlier snpd brought into the guest; `adopt` goes on with it. */
	adoptVolumes(records: VolumeRecords): void {
		this.volumes = new PodVolumes(this.#owner, records);
	}

	/** What a VM of the pool has is the pod's. Both groups of its processes go after it: that in the pool, and the pod's. */
	#ownWarm(scope: Scope, warm: PoolVm): void {
		const { cgroup } = this;
		if (cgroup !== undefined)
			scope.defer(CGROUP_RELEASE, async () => {
				// Nothing must be on its way into what is removed.
				await warm.moving.catch(() => undefined);
				await cgroup.remove();
			});
		const release = warm.scope.take(CGROUP_RELEASE);
		if (release !== undefined) scope.defer(POOL_CGROUP_RELEASE, release);
		warm.scope.moveTo(scope);
	}

	#warnOfSample(): void {
		if (this.#owner.config.confidential.mode === "sample")
			this.#owner.log.warn("INSECURE: a pod in sample mode, whose keys are published and whose memory the node can read");
	}

	#ownVolumes(scope: Scope): void {
		const { volumes } = this;
		scope.defer("emptyDirs", () => volumes.emptyDirs.end());
		scope.defer("shared folders", () => volumes.shares.close());
		scope.defer("volumes", () => volumes.copies.close());
	}

	/**
	 * Ends the VM and gives back all that others may want next; after the transition to `gone`. What can't be given back is logged: the pod is gone for its
	 * users either way. The VM's process, which SIGKILL has reached, and its control group are nobody's next, unless the VM has something of the node; who
	 * wants the network's namespace next waits for it. Their ends take their time, and are there when `left` settles. Until then the journal tells a new snpd
	 * of them.
	 */
	async release(): Promise<void> {
		this.#endMemory();
		const { scope, volumes, cgroup, network } = this;
		const { timeline, log, journal } = this.#owner;
		const closeNetwork = scope.take(NETWORK_RELEASE);
		const rest = new Rest({
			endVm: scope.take(VM_RELEASE) ?? (() => undefined),
			endNetwork: closeNetwork && network?.record !== null ? async () => await this.leaveNetwork().then(closeNetwork) : undefined,
			cgroup,
			journal,
			log,
		});
		for (const name of [CGROUP_RELEASE, POD_FOLDER]) scope.take(name);
		await timeline.step("pod-end", async () => {
			const ended = rest.end();
			void this.leaveNetwork(ended);
			if (volumes.holdNode) await ended;
			await undo(scope, log);
		});
		if (rest.removeNow()) return;
		this.#owner.saveQuietly();
		this.left = rest.remove();
	}

	/** Ends a VM that nobody needs any more; what the pod has besides is given back by `release`. */
	end(): void {
		if (this.#state.kind !== "running") return;
		this.ending = true;
		const ended = this.#state.machine.vmm
			.kill()
			.catch((error: unknown) => this.#owner.log.error("the VM of a pod that was killed does not end", error));
		void this.leaveNetwork(ended);
	}

	/**
	 * Leaves the network's namespace as it was, so that another VM can have it. Never rejects: `release` tries again, and its failure is told.
	 * @param vmEnd the end of the VM's process: the taps go with it, which takes the kernel less than to take them away from it
	 */
	leaveNetwork(vmEnd: Promise<unknown> = Promise.resolve()): Promise<void> {
		const { network } = this;
		if (network === null) return Promise.resolve();
		if (this.#networkEnd === undefined) {
			const { timeline, leavingNetworks } = this.#owner;
			network.leave();
			this.#networkEnd = vmEnd
				.then(() => timeline.step("network-end", () => network.close()))
				// Before another VM gets the namespace: no later snpd may clear it.
				.then(() => this.#owner.saveQuietly())
				// The second try, too, comes before another VM gets the namespace: it would take away that one's taps.
				.catch(() => network.close().then(() => this.#owner.saveQuietly()))
				.catch(() => undefined);
			leavingNetworks.add(network.space, this.#networkEnd);
		}
		return this.#networkEnd;
	}

	#ownScope(): Scope {
		if (this.#making === undefined) throw new ShimError("internal", `pod ${this.#owner.podId}: its sandbox is not being made`);
		return this.#making;
	}

	#networkOptions(): PodNetworkOptions {
		const { config, log, leavingNetworks: leaving } = this.#owner;
		return { vmmCallMs: config.timeouts.vmm_call_ms, log, leaving, onChange: () => this.#owner.saveQuietly() };
	}

	/** The guest has put a file system on the pod's writable disk. */
	get hasScratch(): boolean {
		return this.scratch !== null && this.machine().details.scratch;
	}

	#scratchStorages(address: string): StorageRequest[] {
		const { details } = this.machine();
		const source = deviceSource(address, details.pci);
		if (!this.hasScratch) return [];
		if (source === undefined)
			throw new ShimError("vmm.api", `the hypervisor put the pod's writable disk at ${address}, where the guest agent can't find it`);
		return [scratchStorage(source)];
	}

	#ownScratch(scope: Scope, { scratch }: PodPlan): void {
		if (scratch !== undefined) scope.defer(`file ${scratch.path}`, () => removeScratchFile(scratch.path));
	}

	/** Makes the file of the pod's writable disk while the VMM starts. */
	#prepareScratch({ scratch }: PodPlan): Promise<BootDisk | undefined> {
		if (scratch === undefined) return Promise.resolve(undefined);
		const { path, maxBytes } = scratch;
		const made = this.#owner.timeline.step("scratch-file", () => makeScratchFile(path, maxBytes).then(() => ({ id: SCRATCH_DISK, path })));
		made.catch(() => undefined);
		return made;
	}

	/** Joins the namespace's interfaces to taps while the VMM starts. */
	#prepareNetwork(network: PodNetwork): Promise<PodNetwork> {
		const prepared = this.#owner.timeline.step("network", () => network.prepare().then(() => network));
		prepared.catch(() => undefined);
		return prepared;
	}

	/** @param sizeBytes of a new VM */
	#follow(machine: Machine, sizeBytes: number | undefined): void {
		this.#watchDeath(machine);
		this.network?.follow(machine);
		const { podId: name, namespace, config, log } = this.#owner;
		this.memory = new VmMemory({
			name,
			namespace,
			port: memoryPort(machine, config.timeouts.vmm_call_ms),
			sizeBytes,
			floorBytes: config.memory.floor_mib * BYTES_PER_MIB,
			exempt: config.confidential.mode === "off" ? (config.memory.reclaim === "balloon" ? undefined : "no balloon") : "confidential",
			pid: machine.vmm.pid,
			startTime: machine.vmm.startTime,
			cgroup: this.cgroup?.path,
			log,
		});
		this.#endMemory = this.#owner.lookAfter(this.memory);
	}

	#watchDeath(machine: Machine): void {
		if (machine.details.damage)
			this.#watchDamage(machine).catch((error: unknown) =>
				this.#owner.log.debug("no more words about changed disks", { reason: explain(error) }),
			);
		this.#watchOom(machine).catch((error: unknown) => this.#owner.log.debug("no more out-of-memory events", { reason: explain(error) }));
		void machine.died.then((death) => {
			this.#endMemory();
			this.memory = undefined;
			this.volumes.copies.close();
			void this.volumes.emptyDirs.end();
			void this.leaveNetwork();
			if (this.#state.kind !== "running") return;
			if (this.ending) this.#owner.log.info("the VM has ended");
			else this.#owner.log.error("the pod is lost", death);
			this.transition({ kind: "lost", death });
			this.#owner.vmEnded();
			this.#owner.saveQuietly();
		});
	}

	async #watchDamage(machine: Machine): Promise<void> {
		for (let told = 0; told < MAX_DAMAGE && this.#state.kind === "running"; told++) {
			await this.#owner.damaged(await machine.agent.nextDamage());
		}
	}

	async #watchOom(machine: Machine): Promise<void> {
		while (this.#state.kind === "running") {
			this.#owner.outOfMemory(await machine.agent.oomEvent());
			void this.memory?.outOfMemory();
		}
	}
}
