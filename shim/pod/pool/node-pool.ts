/** The pool of a node: real VMs, and the files that they come from. */

import { explain, ShimError } from "../../base/errors.ts";
import { loadConfig } from "../../config/load.ts";
import type { Config } from "../../config/schema.ts";
import { POOL_CGROUP } from "../../base/names.ts";
import { HostCgroup } from "../../host/cgroups.ts";
import type { PodPlan } from "../plan.ts";
import { bootPoolVm } from "./boot-vm.ts";
import { FilesWatch } from "./files-watch.ts";
import { Pool } from "./pool.ts";
import type { PoolSummary } from "./pool.ts";
import { isPoolable, shapeOf, usualPlan } from "./shape.ts";
import { recoverPoolVms } from "./recover-vms.ts";
import type { PoolPlace, PoolVm } from "./vm.ts";

/** What a pod has of the pool. */
export interface PodPool {
	/** A VM that is ready, of the kind that the plan asks for: the caller's from now on. Undefined: boot one. */
	take(plan: PodPlan): Promise<PoolVm | undefined>;
	/** Runs a start that no VM of the pool shall disturb. */
	during<T>(start: () => Promise<T>): Promise<T>;
	/** A VM that was taken turned out to be of no use. */
	failed(error: unknown): void;
}

/** More configuration files than this are not watched; what is in them counts when a pod comes. */
const MAX_FILES = 64;

const dropIns = (file: string): string => `${file}.d`;

/** The pool of one node. */
export class NodePool {
	readonly #pool: Pool<PoolVm>;
	readonly #place: PoolPlace;
	readonly #watch = new FilesWatch(() => void this.#filesChanged());
	/** Configuration files in use. */
	readonly #files = new Set<string>();
	/** Configurations that want VMs. */
	#guests: readonly Config[] = [];

	constructor(place: PoolPlace) {
		this.#place = place;
		this.#pool = new Pool({
			log: place.log,
			shape: shapeOf,
			usual: usualPlan,
			boot: (shape, signal) => bootPoolVm(shape, place, signal),
			emptied: () => void new HostCgroup(POOL_CGROUP).removeEmpty(),
			watch: (guests) => {
				this.#guests = guests;
				this.#watchFiles();
			},
		});
	}

	#watchFiles(): void {
		const guests = this.#guests.flatMap((config) => {
			const { hypervisorPath, kernel, image } = usualPlan(config);
			return [hypervisorPath, kernel, image];
		});
		const files = [...this.#files];
		this.#watch.set([...files, ...files.map(dropIns), ...guests], files.map(dropIns));
	}

	/** A file's changes count as long as snpd lives. */
	#remember(file: string): void {
		if (this.#files.has(file) || this.#files.size >= MAX_FILES) return;
		this.#files.add(file);
		this.#watchFiles();
	}

	/** Takes up what an earlier snpd booted, as far as these configuration files want it; what they don't is ended. Never rejects. */
	async recover(files: Iterable<string>): Promise<void> {
		const found = await recoverPoolVms(this.#place).catch((error: unknown) => {
			this.#place.log.error("VMs that an earlier snpd booted ahead can't be found", error);
			return [];
		});
		await Promise.all([...files].map((file) => this.know(file)));
		this.#pool.adopt(found);
	}

	/** A configuration file is in use: what it wants is kept from now on. A file that is wrong, or gone, changes nothing. */
	async know(file: string): Promise<void> {
		this.#remember(file);
		const config = await loadConfig(file, { required: false }).catch(() => undefined);
		if (config !== undefined) this.#pool.configure(file, config);
	}

	/** The pool as a pod sees it. @param file the pod's configuration file */
	for(file: string, config: Config): PodPool {
		this.#remember(file);
		return {
			take: async (plan) => (isPoolable(plan) ? await this.#take(file, plan, config) : undefined),
			during: (start) => this.#pool.during(start),
			failed: (error) => this.#pool.failed(error),
		};
	}

	/** Whether it holds VMs, or is to. */
	get kept(): boolean {
		return this.#guests.length > 0 || this.idle.count > 0;
	}

	async #take(file: string, plan: PodPlan, config: Config): Promise<PoolVm | undefined> {
		const vm = await this.#pool.take(file, plan, config);
		if (vm === undefined || plan.confidential === undefined) return vm;
		try {
			await vm.bind(plan.confidential.initdata);
			return vm;
		} catch (error) {
			this.#place.log.warn("a pod's policy can't be bound to a VM that waits: it gets a VM of its own", { reason: explain(error) });
			// What the guest says of a policy that it does not take is no reason to end it; any other failure is.
			if (error instanceof ShimError && error.reason === "guest.call") this.#pool.giveBack(vm);
			else await vm.end();
			return undefined;
		}
	}

	/** VMs that wait for a pod. */
	get idle(): { readonly count: number; readonly memoryMib: number } {
		return this.#pool.idle;
	}

	/** See `Pool.shrink`. */
	shrink(count: number): Promise<number> {
		return this.#pool.shrink(count);
	}

	/** See `Pool.drain`. */
	drain(): Promise<number> {
		return this.#pool.drain();
	}

	/** Ends all VMs, for good. */
	async close(): Promise<void> {
		this.#watch.close();
		await this.#pool.close();
		new HostCgroup(POOL_CGROUP).removeEmpty();
	}

	summary(): PoolSummary {
		return this.#pool.summary();
	}

	async #filesChanged(): Promise<void> {
		await Promise.all([...this.#files].map((file) => this.know(file)));
		// A folder of drop-ins may have come.
		this.#watchFiles();
		this.#pool.review();
	}
}
