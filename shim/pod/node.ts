/** All pods of a node: found by their keepers, brought back from their journals, removed when nobody holds them any more. */

import { existsSync } from "node:fs";
import { basename, join } from "node:path";

import { deferred, withDeadline } from "../base/deadline.ts";
import type { Deferred } from "../base/deadline.ts";
import { explain, ShimError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { keeperSocket, podFolder, podKey } from "../base/names.ts";
import { KnownConfigs } from "../config/known-configs.ts";
import { loadConfig } from "../config/load.ts";
import { salvageConfig } from "../config/salvage.ts";
import { defaultConfig } from "../config/schema.ts";
import type { Config } from "../config/schema.ts";
import { makeFolder } from "../host/filesystem.ts";
import { ProcessHandle } from "../host/processes.ts";
import { isListening } from "../host/sockets.ts";
import { MemoryController } from "../memory/controller.ts";
import { RootfsImages } from "../storage/images.ts";
import { marked } from "./confidential.ts";
import type { ConfidentialMode } from "./confidential.ts";
import { readJournals } from "./journal.ts";
import type { PodRecord } from "./journal.ts";
import { LeavingNetworks } from "./leaving-networks.ts";
import { Pod } from "./pod.ts";
import { NodePool } from "./pool/node-pool.ts";
import type { DeleteResult, Mover, PodIdentity, PublishEvent } from "./ports.ts";
import { clearAway, restorePod } from "./recovery.ts";
import type { Span } from "./timeline.ts";

/** What the node needs of the process it lives in. */
export interface NodeOptions {
	readonly stateDir: string;
	/** The configuration file for pods whose runtime class names none; it need not exist. */
	readonly defaultConfigFile: string;
	readonly publish: PublishEvent;
	readonly log: Log;
	/** The main configuration's memory.*; the defaults unless given. */
	readonly memory?: Config["memory"];
}

/** A pod in a few words, for snpctl. */
export interface PodSummary {
	readonly namespace: string;
	readonly podId: string;
	readonly state: string;
	readonly vmmPid: number;
	/** How it is kept from its node. */
	readonly confidential: ConfidentialMode;
	readonly containers: readonly { readonly id: string; readonly state: string }[];
}

/** Timelines of pods that are gone are kept for this many pods. */
const MAX_TIMELINES = 64;
const MIB = 1024 * 1024;
/** How long a keeper that was just started may take to connect; containerd gives the `delete` that waits for it 5 s. */
const KEEPER_ARRIVAL_MS = 2_000;
/** How long a pod waits for one of its name whose VM does not end. */
const BEFORE_MS = 30_000;

/** The pods of a node. */
export class PodNode {
	readonly #options: NodeOptions;
	readonly #pods = new Map<string, Pod>();
	readonly #starting = new Map<string, Promise<Pod>>();
	/** What is left of pods that are gone, by their keys: a pod that comes with the same key must not find it. */
	readonly #leaving = new Map<string, Promise<void>>();
	readonly #leavingNetworks = new LeavingNetworks();
	readonly #images = new Map<string, RootfsImages>();
	readonly #configs = new KnownConfigs();
	/** VMs that were booted ahead. */
	readonly pool: NodePool;
	/** Connected keepers, with a pod or without. */
	readonly #movers = new Map<string, Mover>();
	/** Pods that an earlier snpd had and that could not be taken up: their keepers may not have been here yet. */
	readonly #lost = new Set<string>();
	/** Keepers that live and have not connected yet, while somebody waits for them. */
	readonly #arrivals = new Map<string, Deferred<Mover>>();
	readonly #timelines = new Map<
		string,
		{ readonly podId: string; readonly containers: readonly string[]; readonly spans: readonly Span[] }
	>();

	/** Looks after the memory of all VMs. */
	readonly memory: MemoryController;

	constructor(options: NodeOptions) {
		this.#options = options;
		this.pool = new NodePool({ stateDir: options.stateDir, log: options.log, defaultFile: options.defaultConfigFile });
		const { reserve_mib, budget_mib } = options.memory ?? defaultConfig().memory;
		this.memory = new MemoryController({ reserveBytes: reserve_mib * MIB, budgetBytes: budget_mib * MIB, log: options.log });
	}

	/** Takes up the pods of an earlier snpd. Each that can't be taken up is cleared away; none keeps the others from coming back. */
	async recover(): Promise<void> {
		const folder = join(this.#options.stateDir, "p");
		// A pod that finds no folder says so when it is made.
		await makeFolder(folder).catch((error: unknown) => this.#options.log.error("the folder of all pods can't be made", error));
		const found = readJournals(folder);
		await Promise.all(
			found.map(async (entry) => {
				if ("damage" in entry) this.#options.log.warn("a pod's journal is damaged", { folder: entry.folder, damage: entry.damage });
				// While one boots its Create is unanswered, and comes again; that one is gone was told.
				const alive = !("record" in entry) || entry.record.state === "running" || entry.record.state === "lost";
				const restored = "record" in entry && alive && (await this.#restore(entry.record));
				if (restored) return;
				await clearAway(entry.folder, "record" in entry ? entry.record : null, this.#options.log).catch((error: unknown) =>
					this.#options.log.error("something of a pod is left to the next snpd", error, { folder: entry.folder }),
				);
				if (alive) this.#lost.add(basename(entry.folder));
			}),
		);
		await this.#knowDefaultImages();
		void this.#recoverPool();
		const live = new Set(this.#pods.keys());
		for (const images of this.#images.values()) await images.sweep(live);
	}

	/** A pod that comes meanwhile does not wait for it. */
	async #recoverPool(): Promise<void> {
		const { defaultConfigFile } = this.#options;
		const used = [...this.#pods.values()].map(({ identity }) => identity.configFile ?? defaultConfigFile);
		await this.pool.recover(new Set([defaultConfigFile, ...used]));
		this.memory.use(this.pool);
	}

	/** The default configuration's images are swept too when no pod came back to name them. */
	async #knowDefaultImages(): Promise<void> {
		try {
			this.#imagesOf(await loadConfig(this.#options.defaultConfigFile, { required: false }));
		} catch (error) {
			this.#options.log.error("images of pods that are gone stay until the configuration is mended", error);
		}
	}

	async #restore(record: PodRecord): Promise<boolean> {
		try {
			const pod = this.#podOf(record.identity, await this.#configOf(record));
			await restorePod(pod, record);
			this.#pods.set(pod.identity.key, pod);
			this.#watchKeeper(pod);
			return true;
		} catch (error) {
			this.#options.log.error("a pod can't be taken up again", error, { pod: record.identity.podId });
			return false;
		}
	}

	/** A pod keeps the configuration that it was started with, whatever became of the file: also when that is wrong by now. */
	async #configOf(record: PodRecord): Promise<Config> {
		if (record.config !== null) return salvageConfig(record.config);
		const file = record.identity.configFile ?? this.#options.defaultConfigFile;
		return await loadConfig(file, { required: false }).catch((error: unknown) => {
			this.#options.log.error("a pod goes on with the defaults", error, { pod: record.identity.podId });
			return defaultConfig();
		});
	}

	/**
	 * A keeper is connected. One without a pod has no one left to serve, and is ended, when containerd has removed its bundle, or when an earlier snpd
	 * had its pod and this one could not take it up: containerd then hears of the end.
	 * @param bundle the folder in which the keeper was started
	 * @param resumed an earlier snpd knew this keeper
	 */
	attach(key: string, mover: Mover, bundle: string, resumed: boolean): void {
		this.#movers.set(key, mover);
		this.#arrivals.get(key)?.resolve(mover);
		const pod = this.#pods.get(key);
		if (pod !== undefined) pod.attach(mover);
		else if (!this.#starting.has(key) && ((this.#lost.delete(key) && resumed) || !existsSync(bundle))) mover.end();
	}

	/** A keeper's link is gone: it comes back, or its process has ended and its pod ends with it. */
	detach(key: string): void {
		this.#movers.delete(key);
		const pod = this.#pods.get(key);
		if (pod === undefined) return;
		pod.keeper.detach();
		this.#watchKeeper(pod);
	}

	/** A pod whose keeper has ended serves nobody: containerd takes it for dead. */
	#watchKeeper(pod: Pod): void {
		const drop = (): void => {
			if (pod.keeper.attached || pod.state.kind === "gone") return;
			pod.log.warn("the pod's keeper has ended: removing the pod");
			this.remove(pod).catch((error: unknown) => pod.log.error("removing the pod failed", error));
		};
		const known = pod.keeper.process;
		const keeper = known && ProcessHandle.open(known.pid, known.startTime === null ? undefined : BigInt(known.startTime));
		if (keeper === undefined) drop();
		else
			void keeper.exited.then(() => {
				keeper.close();
				drop();
			});
	}

	/** The pod of a keeper, if there is one. */
	find(key: string): Pod | undefined {
		return this.#pods.get(key);
	}

	/**
	 * The pod of a keeper; made when there is none.
	 * @throws ShimError when its configuration is wrong
	 */
	async obtain(identity: PodIdentity, mover: Mover): Promise<Pod> {
		const { key } = identity;
		const known = this.#pods.get(key) ?? (await this.#starting.get(key));
		if (known !== undefined) return known;
		const starting = this.#makePod(identity);
		this.#starting.set(key, starting);
		try {
			const pod = await starting;
			// Its keeper may have gone meanwhile, told by containerd or by itself: nobody would ever remove the pod.
			if (this.#movers.get(key)?.pid !== mover.pid)
				throw new ShimError("wait.canceled", `the keeper of pod ${identity.podId} went before the pod was made`);
			pod.attach(mover);
			this.#pods.set(key, pod);
			return pod;
		} finally {
			this.#starting.delete(key);
		}
	}

	async #makePod(identity: PodIdentity): Promise<Pod> {
		const file = identity.configFile ?? this.#options.defaultConfigFile;
		const before = this.#leaving.get(identity.key);
		// Both have the same folder.
		if (before !== undefined)
			await withDeadline({ what: `the end of the pod that was ${identity.podId} before`, timeoutMs: BEFORE_MS }, () => before);
		return this.#podOf(identity, await this.#configs.load(file, { required: identity.configFile !== null }));
	}

	#podOf(identity: PodIdentity, config: Config): Pod {
		const { stateDir, publish, log } = this.#options;
		if (config.storage.layers && config.storage.prepare_pulled) this.#imagesOf(config).watch(identity.address);
		return new Pod(identity, podFolder(stateDir, identity.key), config, {
			publish,
			log,
			images: (wanted) => this.#imagesOf(wanted),
			leavingNetworks: this.#leavingNetworks,
			abandoned: (pod) => this.#removeLater(pod),
			pool: this.pool.for(identity.configFile ?? this.#options.defaultConfigFile, config),
			lookAfter: (vm) => this.memory.add(vm),
		});
	}

	#imagesOf(config: Config): RootfsImages {
		const { cache_dir, cache_max_mib, image_build_ms, mkfs_erofs } = { ...config.storage, ...config.timeouts };
		const known = this.#images.get(cache_dir);
		if (known !== undefined) return known;
		const images = new RootfsImages({
			instance: this.#options.stateDir,
			cacheDir: cache_dir,
			maxBytes: cache_max_mib * MIB,
			buildTimeoutMs: image_build_ms,
			mkfsPath: mkfs_erofs,
			log: this.#options.log,
		});
		this.#images.set(cache_dir, images);
		return images;
	}

	/** containerd's Shutdown for a pod: forgets it when no container is left (or `now`). One that stands alone has a call of its own for its end. */
	async shutdown(pod: Pod, now: boolean): Promise<void> {
		if ((!pod.empty || pod.standsAlone) && !now) return;
		await this.remove(pod);
	}

	/**
	 * The last container of a pod has gone after the pod's first one, with which containerd's Shutdown came: containerd 2.x sends no further one.
	 * The answer that tells of the removal leaves before the keeper ends.
	 */
	#removeLater(pod: Pod): void {
		setImmediate(() => {
			if (this.#pods.get(pod.identity.key) !== pod) return;
			this.remove(pod).catch((error: unknown) => pod.log.error("removing the pod failed", error));
		});
	}

	/** Removes a pod whatever its state. */
	async remove(pod: Pod): Promise<void> {
		this.#keepTimeline(pod);
		try {
			await pod.destroy();
		} finally {
			if (this.#pods.get(pod.identity.key) === pod) this.#pods.delete(pod.identity.key);
			this.#awaitLeft(pod);
		}
	}

	#awaitLeft({ identity: { key }, sandbox }: Pod): void {
		const left = sandbox.left.then(() => {
			if (this.#leaving.get(key) === left) this.#leaving.delete(key);
		});
		this.#leaving.set(key, left);
	}

	/** Removes a container that containerd has given up, and its pod when it was the last; says how it ended, if that is known. */
	async discard(address: string, namespace: string, id: string): Promise<DeleteResult | undefined> {
		for (const pod of this.#pods.values()) {
			const { identity } = pod;
			if (identity.address !== address || identity.namespace !== namespace) continue;
			if (identity.podId !== id && !pod.knows(id)) continue;
			const result = await pod.discard(id);
			if (pod.standsAlone ? identity.podId === id : pod.empty) await this.remove(pod);
			return result;
		}
		// A keeper that was never asked for a container has no pod, and must not wait for one any longer.
		const keeper = await this.#keeperOf(podKey(address, namespace, id));
		keeper?.end();
		return undefined;
	}

	/** A pod's keeper; one that lives but was started too lately to be connected is waited for. */
	async #keeperOf(key: string): Promise<Mover | undefined> {
		if (!this.#movers.has(key) && isListening(keeperSocket(this.#options.stateDir, key))) {
			const arrival = this.#arrivals.get(key) ?? deferred<Mover>();
			this.#arrivals.set(key, arrival);
			const wait = { what: `the keeper ${key}`, timeoutMs: KEEPER_ARRIVAL_MS };
			await withDeadline(wait, async () => this.#movers.get(key) ?? (await arrival.promise)).catch((error: unknown) =>
				this.#options.log.warn("a keeper that nobody needs may stay", { reason: explain(error) }),
			);
			if (this.#arrivals.get(key) === arrival) this.#arrivals.delete(key);
		}
		return this.#movers.get(key);
	}

	/** A failure of a call on a pod, as its users shall see it. */
	marked(key: string, error: unknown): unknown {
		return marked(error, this.#pods.get(key)?.config.confidential.mode ?? "off");
	}

	/** All pods, for snpctl. */
	list(): PodSummary[] {
		return [...this.#pods.values()].map((pod) => ({
			namespace: pod.identity.namespace,
			podId: pod.identity.podId,
			state: pod.state.kind,
			vmmPid: pod.pid,
			confidential: pod.config.confidential.mode,
			containers: [...pod.containers.values()].map((container) => ({
				id: container.id,
				state: container.paused ? "paused" : container.init.state.kind,
			})),
		}));
	}

	/**
	 * The timeline of a pod, or of the pod of a container, alive or one of the last that were removed.
	 * @throws ShimError `pod.not-found`
	 */
	timeline(id: string): readonly Span[] {
		for (const pod of this.#pods.values()) if (pod.identity.podId === id || pod.knows(id)) return pod.timeline.spans;
		const kept = [...this.#timelines.values()].reverse().find((entry) => entry.podId === id || entry.containers.includes(id));
		if (kept === undefined) throw new ShimError("pod.not-found", `no pod or container ${id} is known`);
		return kept.spans;
	}

	/**
	 * What the policy of a running pod, or of the pod of a container, has denied last; null when it has denied nothing.
	 * @throws ShimError `pod.not-found`
	 */
	denial(id: string): { readonly text: string } | null {
		const pod = [...this.#pods.values()].find((one) => one.identity.podId === id || one.knows(id));
		if (pod === undefined) throw new ShimError("pod.not-found", `no pod or container ${id} is known`);
		const denied = pod.state.kind === "running" ? pod.state.machine.agent.lastDenial : undefined;
		return denied === undefined ? null : { text: explain(denied) };
	}

	#keepTimeline(pod: Pod): void {
		const { key, podId } = pod.identity;
		if (pod.timeline.spans.length === 0) return;
		this.#timelines.delete(key);
		this.#timelines.set(key, {
			podId,
			containers: [...pod.containers.keys(), ...pod.tombstones.list.map((stone) => stone.containerId)],
			spans: pod.timeline.spans,
		});
		const oldest = this.#timelines.keys().next().value;
		if (this.#timelines.size > MAX_TIMELINES && oldest !== undefined) this.#timelines.delete(oldest);
	}
}
