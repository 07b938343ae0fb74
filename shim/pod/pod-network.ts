/** A pod's network: what is in its namespace is brought into the VM before its boot, and kept as it is there while the VM runs. */

import type { AgentClient } from "../agent/client.ts";
import { ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { Mailbox } from "../base/mailbox.ts";
import { closeTap, MAX_TAP_QUEUES } from "../host/taps.ts";
import { goneNeighbours } from "../network/gone-neighbours.ts";
import type { NetworkPlan } from "../network/plan.ts";
import {
	clearSpace,
	findSpace,
	forwardPorts,
	joinEndpoints,
	joinSpace,
	partEndpoints,
	readSpace,
	updateEndpoints,
	watchSpace,
} from "../network/space.ts";
import type { Joined, NamespaceAddress } from "../network/space.ts";
import { isUnknownDevice } from "../vmm/api-error.ts";
import type { VmmClient } from "../vmm/client.ts";
import { slotOfBdf } from "../vmm/plan.ts";
import { connectGuestPort } from "./guest-port.ts";
import type { LeavingNetworks } from "./leaving-networks.ts";
import type { Machine } from "./machine.ts";

/** What the journal keeps: all else is found in the namespace. */
export interface NetworkRecord {
	readonly path: string;
	readonly id: string;
	/** Queues of each card. */
	readonly queues: number;
	/** What the guest was told last, each message as JSON; the neighbours come last. */
	readonly told: readonly string[];
}

/** What a pod's network needs. */
export interface PodNetworkOptions {
	readonly vmmCallMs: number;
	readonly log: Log;
	/** The node's pods whose removal was answered, and whose networks may still be there. */
	readonly leaving: LeavingNetworks;
	/** Called when `record` has changed, so that the journal follows. */
	readonly onChange: () => void;
}

/** How one call is bounded. */
interface Call {
	readonly signal?: AbortSignal | undefined;
}

/** A change is often one of several: an interface, then its address, then its routes. They are taken together when nothing came for so long. */
const QUIET_MS = 50;
/** What failed is tried again after so long, and then after twice as long each time, up to the longest. */
const RETRY_MS = 1_000;
const MAX_RETRY_MS = 60_000;

const deviceId = (index: number): string => `net${index}`;

/** The network of one pod. Whoever makes it closes it. */
export class PodNetwork {
	readonly space: NamespaceAddress;
	readonly #options: PodNetworkOptions;
	readonly #turns: Mailbox;
	/** The PCI slots of cards that were plugged into the running guest. */
	readonly #slots = new Map<number, string>();
	#plan: NetworkPlan | undefined;
	#joined: Joined[] = [];
	#told: readonly string[];
	#omitted: readonly string[] = [];
	#stopWatch: () => void = () => undefined;
	#stopForward: () => void = () => undefined;
	#timer: NodeJS.Timeout | undefined;
	#retryMs = RETRY_MS;
	/** The machine whose network follows the namespace's. */
	#follower: Machine | undefined;
	readonly #closing = new AbortController();
	/** Whether what is ours in the namespace is this pod's: another one's must not be cleared away. */
	#claimed: boolean;

	readonly #queues: number;

	private constructor(record: NetworkRecord, claimed: boolean, options: PodNetworkOptions) {
		this.#claimed = claimed;
		this.space = { path: record.path, id: record.id };
		this.#queues = record.queues;
		this.#told = record.told;
		this.#options = options;
		this.#turns = new Mailbox(`the network of ${record.path}`);
	}

	/**
	 * A network of the namespace at a path; nothing is changed there yet.
	 * @param vcpus the VM's processors: a card has a queue for each
	 * @throws ShimError `network.setup` when there is none, `network.unsupported` when it is the host's own
	 */
	static open(path: string, vcpus: number, options: PodNetworkOptions): PodNetwork {
		return new PodNetwork({ ...findSpace(path), queues: Math.min(vcpus, MAX_TAP_QUEUES), told: [] }, false, options);
	}

	/** The network that an earlier snpd made. */
	static adopt(record: NetworkRecord, options: PodNetworkOptions): PodNetwork {
		return new PodNetwork(record, true, options);
	}

	/** For the journal; null while nothing in the namespace is this pod's. */
	get record(): NetworkRecord | null {
		if (!this.#claimed) return null;
		return { ...this.space, queues: this.#queues, told: this.#told };
	}

	/**
	 * Reads the namespace and joins each of its interfaces to a tap, as soon as no other pod is leaving it.
	 * @throws ShimError `network.unsupported`, `network.busy`, `network.setup`
	 */
	prepare(): Promise<void> {
		return this.#run(async () => {
			await this.#options.leaving.left(this.space, this.#closing.signal);
			try {
				this.#joined = await joinSpace(this.space, this.#queues, (plan) => {
					this.#plan = plan;
					this.#nameOmitted(plan);
					this.#claim(true);
				});
			} catch (error) {
				// Somebody was a moment faster.
				if (this.#claimed && error instanceof ShimError && error.reason === "network.busy") this.#claim(false);
				throw error;
			}
		});
	}

	/** Gives the VM a card for each interface: before its boot, so that the guest has them from its start. */
	plugCold(client: VmmClient, call: Call): Promise<void> {
		return this.#run(() => this.#plugJoined(client, call));
	}

	/** Tells the guest what its cards are to be, while the pod is made: the journal gets to know it with the pod's next step. */
	tell(agent: AgentClient, call: Call): Promise<void> {
		return this.#run(async () => {
			if (this.#plan !== undefined) await this.#tell(agent, this.#plan, call);
		});
	}

	/** From now on the guest's network follows the namespace's; what has changed before is made good. Ends with the machine, or `close`. */
	follow(machine: Machine): void {
		this.#follower = machine;
		const started = this.#run(async () => {
			this.#stopWatch = await watchSpace(this.space, () => this.#later(machine, QUIET_MS));
			await this.#forward(machine);
		});
		started.catch((error: unknown) => this.#failed(error));
		void this.#attempt(machine);
		void machine.died.then(() => this.#unfollow());
	}

	/** The VM is ending: nothing more is done in the namespace, and nothing of this process holds it, but for `close`. */
	leave(): void {
		this.#closing.abort(new ShimError("wait.canceled", `the network of ${this.space.path} is being removed`));
		this.#unfollow();
	}

	/**
	 * Leaves the namespace as it was. Safe to call twice.
	 * @throws ShimError `network.setup`
	 */
	close(): Promise<void> {
		this.leave();
		const end = async (): Promise<void> => {
			// Closed in the turn that may have started the watch after all.
			this.#unfollow();
			this.#closeJoined();
			if (this.#claimed) await clearSpace(this.space);
			this.#claimed = false;
		};
		return this.#turns.run(end, { always: true });
	}

	#claim(claimed: boolean): void {
		this.#claimed = claimed;
		this.#options.onChange();
	}

	#run(work: () => Promise<void>): Promise<void> {
		return this.#turns.run(async () => {
			this.#closing.signal.throwIfAborted();
			await work();
		});
	}

	/** Connections to localhost in the namespace, as containerd's port-forward makes them, reach the guest's localhost. */
	async #forward(machine: Machine): Promise<void> {
		if (!machine.details.forward) return;
		try {
			const catcher = await forwardPorts(this.space, (port) => connectGuestPort(machine.vsock, port));
			this.#stopForward = catcher.close;
		} catch (error) {
			this.#options.log.error("port-forward does not reach this pod", error);
		}
	}

	#unfollow(): void {
		this.#follower = undefined;
		clearTimeout(this.#timer);
		this.#stopWatch();
		this.#stopForward();
		this.#stopForward = () => undefined;
	}

	#later(machine: Machine, delayMs: number): void {
		if (this.#closing.signal.aborted || this.#follower !== machine) return;
		clearTimeout(this.#timer);
		this.#timer = setTimeout(() => void this.#attempt(machine), delayMs);
		this.#timer.unref();
	}

	/** A guest that is paused, or a hypervisor that is busy, gets the changes when it is so no more. */
	async #attempt(machine: Machine): Promise<void> {
		try {
			await this.#run(() => this.#sync(machine));
			this.#retryMs = RETRY_MS;
		} catch (error) {
			this.#failed(error);
			this.#later(machine, this.#retryMs);
			this.#retryMs = Math.min(2 * this.#retryMs, MAX_RETRY_MS);
		}
	}

	#failed(error: unknown): void {
		if (!this.#closing.signal.aborted && this.#follower !== undefined)
			this.#options.log.error("the VM's network can't follow its namespace", error, { namespace: this.space.path });
	}

	/** Logs what the VM does not get, once as long as it stays the same. */
	#nameOmitted({ omitted }: NetworkPlan): void {
		for (const one of omitted) if (!this.#omitted.includes(one)) this.#options.log.warn("left out of the VM's network", { omitted: one });
		this.#omitted = omitted;
	}

	/** Makes the VM's cards and the guest's settings what the namespace has now. */
	async #sync(machine: Machine): Promise<void> {
		const { plan, taps } = await readSpace(this.space, { running: true });
		this.#nameOmitted(plan);
		const { client } = machine.vmm;
		const gone = [...taps.keys()].filter((index) => !plan.endpoints.some((endpoint) => endpoint.index === index));
		for (const index of gone) await this.#unplug(client, index);
		const fresh = plan.endpoints.filter((endpoint) => !taps.has(endpoint.index));
		if (fresh.length > 0) this.#options.log.info("interfaces have come", { interfaces: fresh.map(({ name }) => name).join(" ") });
		this.#joined = await joinEndpoints(this.space, fresh, this.#queues);
		await this.#plugJoined(client, {});
		const changed = plan.endpoints.filter(({ index, mtu }) => (taps.get(index) ?? mtu) !== mtu);
		if (changed.length > 0) await updateEndpoints(this.space, changed);
		if (await this.#tell(machine.agent, plan, {})) this.#options.onChange();
	}

	/** Hands the VM the taps that wait; those behind one that fails are closed. */
	async #plugJoined(client: VmmClient, call: Call): Promise<void> {
		try {
			for (let joined = this.#joined.shift(); joined !== undefined; joined = this.#joined.shift()) await this.#plug(client, joined, call);
		} finally {
			this.#closeJoined();
		}
	}

	#closeJoined(): void {
		for (const { fds } of this.#joined.splice(0)) closeTap(fds);
	}

	async #plug(client: VmmClient, { endpoint, fds }: Joined, call: Call): Promise<void> {
		const { index, mac } = endpoint;
		try {
			// No MTU: the VMM would look for the tap in its own namespace. The guest is told by its agent.
			const config = { id: deviceId(index), mac, num_queues: 2 * fds.length };
			const device = await client.addNet(config, fds, { ...call, timeoutMs: this.#options.vmmCallMs });
			const slot = device === undefined ? undefined : slotOfBdf(device.bdf);
			if (slot !== undefined) this.#slots.set(index, slot);
		} finally {
			closeTap(fds);
		}
	}

	/** The tap goes last: it is what tells a later snpd that the VM has the card. */
	async #unplug(client: VmmClient, index: number): Promise<void> {
		const device = deviceId(index);
		this.#options.log.info("an interface has gone", { device });
		try {
			await client.removeDevice(device, { timeoutMs: this.#options.vmmCallMs });
		} catch (error) {
			if (!(error instanceof ShimError && isUnknownDevice(error.cause))) throw error;
		}
		this.#slots.delete(index);
		await partEndpoints(this.space, [index]);
	}

	/**
	 * Sends what the guest was not told yet. Routes go again after an interface: those through addresses that it lost are gone.
	 * @returns whether there was something
	 */
	async #tell(agent: AgentClient, plan: NetworkPlan, call: Call): Promise<boolean> {
		const interfaces = plan.interfaces.map((one, at) => ({ ...one, devicePath: this.#slots.get(plan.endpoints[at]?.index ?? 0) ?? "" }));
		const texts = {
			interfaces: interfaces.map((one) => JSON.stringify(one)),
			routes: JSON.stringify(plan.routes),
			neighbours: JSON.stringify(plan.neighbours),
		};
		const changed = interfaces.filter((_, at) => !this.#told.includes(texts.interfaces[at] ?? ""));
		for (const one of changed) await agent.updateInterface(one, call);
		const told = [...texts.interfaces, texts.routes, texts.neighbours];
		if (interfaces.length > 0 && (changed.length > 0 || !this.#told.includes(texts.routes))) await agent.updateRoutes(plan.routes, call);
		const gone = goneNeighbours(this.#told.at(-1), plan);
		const news = changed.length > 0 || !this.#told.includes(texts.neighbours) ? [...gone, ...plan.neighbours] : gone;
		if (news.length > 0) await agent.addNeighbours(news, call);
		if (JSON.stringify(told) === JSON.stringify(this.#told)) return false;
		this.#told = told;
		return true;
	}
}
