/** The pool of a node: real VMs, and the files that they come from. */

import { explain, ShimError } from "../../base/errors.ts";
import { Mailbox } from "../../base/mailbox.ts";
import { loadConfig } from "../../config/load.ts";
import type { Config } from "../../config/schema.ts";
import { POOL_CGROUP } from "../../base/names.ts";
import { HostCgroup } from "../../host/cgroups.ts";
import type { Spare } from "../../memory/ports.ts";
import type { PodPlan } from "../plan.ts";
import { makeTemplate } from "../snapshot/make-template.ts";
import { mostBytes } from "../snapshot/room.ts";
import { readTemplates, removeTemplate } from "../snapshot/template.ts";
import { Templates } from "../snapshot/templates.ts";
import type { TemplatesSummary, TemplateUse } from "../snapshot/templates.ts";
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
	/** A template of the kind that the plan asks for. Undefined: there is none. */
	template(plan: PodPlan): Promise<TemplateUse | undefined>;
	/** Runs a start that no VM of the pool shall disturb. */
	during<T>(start: () => Promise<T>): Promise<T>;
	/** A VM that was taken turned out to be of no use. */
	failed(error: unknown): void;
}

/** More configuration files than this are not watched; what is in them counts when a pod comes. */
const MAX_FILES = 64;

const dropIns = (file: string): string => `${file}.d`;

/** What the pool needs of its node. */
export interface NodePoolOptions extends PoolPlace {
	/** The configuration file that need not exist. */
	readonly defaultFile: string;
}

/** One that is being read, and whether it was named again meanwhile. */
interface Reading {
	done: Promise<void>;
	again: boolean;
}

/** The pool of one node, and its templates. */
export class NodePool implements Spare {
	readonly #pool: Pool<PoolVm>;
	readonly #templates: Templates;
	/** Whatever is booted ahead is booted one after the other. */
	readonly #turns = new Mailbox("what is booted ahead");
	readonly #options: NodePoolOptions;
	readonly #watch = new FilesWatch(() => void this.#filesChanged());
	/** Configuration files in use. */
	readonly #files = new Set<string>();
	readonly #readings = new Map<string, Reading>();
	/** Configurations that want VMs, and those that want templates. */
	#guests: readonly Config[] = [];
	#templated: readonly Config[] = [];
	#changed: () => void = () => undefined;

	constructor(options: NodePoolOptions) {
		this.#options = options;
		this.#pool = new Pool({
			log: options.log,
			shape: shapeOf,
			usual: usualPlan,
			boot: (shape, signal) => this.#turns.run(() => bootPoolVm(shape, options, signal, this.#templates.of(shape))),
			emptied: () => void new HostCgroup(POOL_CGROUP).removeEmpty(),
			watch: (guests) => {
				this.#guests = guests;
				this.#watchFiles();
				this.#changed();
			},
		});
		this.#templates = new Templates({
			log: options.log,
			shape: shapeOf,
			usual: usualPlan,
			make: (shape, signal) => this.#turns.run(() => makeTemplate(shape, options, signal)),
			remove: removeTemplate,
			mostBytes: () => mostBytes(options.stateDir),
			watch: (configs) => {
				this.#templated = configs;
				this.#watchFiles();
				this.#changed();
			},
		});
	}

	#watchFiles(): void {
		const guests = [...this.#guests, ...this.#templated].flatMap((config) => {
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
		const found = await recoverPoolVms(this.#options).catch((error: unknown) => {
			this.#options.log.error("VMs that an earlier snpd booted ahead can't be found", error);
			return [];
		});
		await Promise.all([...files].map((file) => this.know(file)));
		this.#pool.adopt(found);
		this.#recoverTemplates();
	}

	#recoverTemplates(): void {
		try {
			this.#templates.adopt(readTemplates(this.#options.stateDir));
		} catch (error) {
			this.#options.log.error("templates that an earlier snpd made can't be read", error);
		}
	}

	/**
	 * A configuration file is in use: what it wants is kept from now on. A file that is wrong changes nothing, nor does one that somebody has named and that is
	 * gone; the default file need not exist, and the defaults count without it. Never rejects.
	 */
	know(file: string): Promise<void> {
		this.#remember(file);
		const running = this.#readings.get(file);
		if (running !== undefined) {
			running.again = true;
			return running.done;
		}
		const reading: Reading = { done: Promise.resolve(), again: false };
		this.#readings.set(file, reading);
		reading.done = this.#read(file, reading);
		return reading.done;
	}

	/** What was read last counts, whatever changes while it is read. */
	async #read(file: string, reading: Reading): Promise<void> {
		do {
			reading.again = false;
			const config = await loadConfig(file, { required: file !== this.#options.defaultFile }).catch(() => undefined);
			if (config === undefined || reading.again) continue;
			this.#pool.configure(file, config);
			this.#templates.configure(file, config);
		} while (reading.again);
		this.#readings.delete(file);
	}

	/** The pool as a pod sees it. @param file the pod's configuration file */
	for(file: string, config: Config): PodPool {
		this.#remember(file);
		return {
			take: async (plan) => (isPoolable(plan) ? await this.#take(file, plan, config) : undefined),
			template: (plan) => this.#template(file, plan, config),
			during: (start) => this.#pool.during(() => this.#templates.during(start)),
			failed: (error) => this.#pool.failed(error),
		};
	}

	/** Whether it holds VMs or templates, or is to. */
	get kept(): boolean {
		return this.#guests.length > 0 || this.#templates.wanted || this.waiting.length > 0;
	}

	/** As with the pool, the file itself decides what there is. */
	async #template(file: string, plan: PodPlan, config: Config): Promise<TemplateUse | undefined> {
		if (!this.#templates.isOf(file, config)) await this.know(file);
		return config.snapshots.enabled ? await this.#templates.find(file, plan, config) : undefined;
	}

	/** A pod's configuration is what its file was when the pod came, and may be older than what is known here: the file itself decides what the pool holds. */
	async #take(file: string, plan: PodPlan, config: Config): Promise<PoolVm | undefined> {
		const off = config.pool.size === 0 && config.pool.max === 0;
		if (off && !this.#pool.has(file)) return undefined;
		const read = this.#pool.isOf(file, config) ? undefined : this.know(file);
		if (off) return undefined;
		await read;
		const vm = await this.#pool.take(file, plan, config);
		if (vm === undefined || plan.confidential === undefined) return vm;
		try {
			await vm.bind(plan.confidential.initdata);
			return vm;
		} catch (error) {
			this.#options.log.warn("a pod's policy can't be bound to a VM that waits: it gets a VM of its own", { reason: explain(error) });
			// What the guest says of a policy that it does not take is no reason to end it; any other failure is.
			if (error instanceof ShimError && error.reason === "guest.call") this.#pool.giveBack(vm);
			else await vm.end();
			return undefined;
		}
	}

	/** VMs that wait for a pod. */
	get waiting(): readonly PoolVm[] {
		return this.#pool.waiting;
	}

	/** VMs that are being ended. */
	get ending(): readonly PoolVm[] {
		return this.#pool.ending;
	}

	/** See `Pool.shrink`; with no VM left, half of the templates go, and none is made for a while in any case. */
	shrink(count: number): number {
		const vms = this.#pool.shrink(count);
		this.#templates.shrink(this.waiting.length === 0 ? Math.ceil(this.#templates.held.count / 2) : 0);
		return vms;
	}

	/** See `Pool.allow`. */
	allow(bytes: number): void {
		this.#pool.allow(bytes);
	}

	follow(changed: () => void): void {
		this.#changed = changed;
	}

	/** Ends all VMs, for good. */
	async close(): Promise<void> {
		this.#watch.close();
		await Promise.all([this.#pool.close(), this.#templates.close()]);
		new HostCgroup(POOL_CGROUP).removeEmpty();
	}

	summary(): PoolSummary & { readonly snapshots: TemplatesSummary } {
		return { ...this.#pool.summary(), snapshots: this.#templates.summary() };
	}

	async #filesChanged(): Promise<void> {
		await Promise.all([...this.#files].map((file) => this.know(file)));
		// A folder of drop-ins may have come.
		this.#watchFiles();
		this.#pool.review();
		this.#templates.review();
	}
}
