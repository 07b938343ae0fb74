/**
 * The node's templates: which kinds of VMs have one, made in the background when nothing else is being started, bounded in room, and dropped when no pod would get
 * a VM like that any more. Nothing here knows how one is made.
 */

import { MAX_TIMER_MS, MONOTONIC } from "../../base/clock.ts";
import type { Clock } from "../../base/clock.ts";
import { explain } from "../../base/errors.ts";
import type { Log } from "../../base/log.ts";
import { Repeat } from "../../base/repeat.ts";
import type { Config } from "../../config/schema.ts";
import type { MemoryRestoreMode } from "../../vmm/api-types.ts";
import type { PodPlan } from "../plan.ts";
import { Pacing } from "../pool/pacing.ts";
import type { PoolTimes } from "../pool/pacing.ts";
import type { Shape } from "../pool/shape.ts";
import type { Template } from "./template.ts";

/** What the templates need of their surroundings. */
export interface TemplatesOptions {
	readonly log: Log;
	/** The kind of VM that a plan asks for; rejects when what it is made of is not there. */
	shape(plan: PodPlan, config: Config): Promise<Shape>;
	/** The plan of a pod without wishes. */
	usual(config: Config): PodPlan;
	/** Makes one; whatever fails leaves nothing. */
	make(shape: Shape, signal: AbortSignal): Promise<Template>;
	remove(template: Template): void;
	/** What all may take together, whatever a configuration allows. */
	mostBytes(): number;
	/** Called with the configurations that want templates, whenever they change. */
	watch?(configs: readonly Config[]): void;
	readonly clock?: Clock;
	readonly times?: Partial<PoolTimes>;
}

/** A template for one start. */
export interface TemplateUse {
	readonly template: Template;
	/** How its memory comes into the VM. */
	readonly mode: MemoryRestoreMode;
	/** The VMM does not bring memory back page by page: it is not asked for that again. */
	onDemandRefused(error: unknown): void;
	/** A VM came of it. */
	worked(): void;
	/** No VM came of it: it is dropped, and another one made after a while. */
	failed(error: unknown): void;
}

/** The templates in a few words, for snpctl. */
export interface TemplatesSummary {
	readonly enabled: boolean;
	readonly templates: readonly {
		readonly name: string;
		readonly key: string;
		readonly vcpus: number;
		readonly memoryMib: number;
		readonly bytes: number;
		readonly ageMs: number;
		readonly uses: number;
	}[];
	/** The kind that is being made; empty for none. */
	readonly making: string;
	/** VMs that were restored, and starts that were to be and were not. */
	readonly restored: number;
	readonly failed: number;
	/** Why the last template could not be made or used; empty when all is well. */
	readonly trouble: string;
}

/** Kinds that a configuration has templates of, beside the one for pods without limits. */
const MAX_KINDS = 4;
const BYTES_PER_MIB = 1024 * 1024;

interface Shelf {
	readonly config: Config;
	/** What pods asked for, newest first, one for each kind. */
	asked: readonly Shape[];
}

interface Kept {
	readonly template: Template;
	uses: number;
	usedAtMs: number;
}

/** Templates of all configurations that want some. */
export class Templates {
	readonly #options: TemplatesOptions;
	readonly #clock: Clock;
	readonly #pace: Pacing;
	/** By configuration file. */
	readonly #shelves = new Map<string, Shelf>();
	/** By kind. */
	readonly #kept = new Map<string, Kept>();
	/** Kinds for which there was no room, until a pod asks for one again. */
	readonly #crowdedOut = new Set<string>();
	/** Hypervisors that refused to bring memory back page by page, by their paths. */
	readonly #copyOnly = new Set<string>();
	#missing: readonly Shape[] = [];
	#missingSinceMs: number;
	#making: { readonly shape: Shape; readonly abort: AbortController; readonly done: Promise<void> } | undefined;
	#cancelTimer: () => void = () => undefined;
	readonly #reviewing = new Repeat(() => this.#reviewAll());
	#closed = false;
	#restored = 0;
	#failed = 0;
	#trouble = "";

	constructor(options: TemplatesOptions) {
		this.#options = options;
		this.#clock = options.clock ?? MONOTONIC;
		this.#pace = new Pacing(this.#clock, options.times);
		this.#missingSinceMs = this.#clock.nowMs();
	}

	/** How many there are, and what they take. */
	get held(): { readonly count: number; readonly bytes: number } {
		return { count: this.#kept.size, bytes: [...this.#kept.values()].reduce((sum, { template }) => sum + template.bytes, 0) };
	}

	/** Whether a configuration wants some. */
	get wanted(): boolean {
		return this.#shelves.size > 0;
	}

	/** Whether this is what it knows of that file. */
	isOf(file: string, config: Config): boolean {
		const known = this.#shelves.get(file);
		return known === undefined ? !config.snapshots.enabled : JSON.stringify(known.config) === JSON.stringify(config);
	}

	/** A configuration as it is now: templates that it does not want any more are dropped. */
	configure(file: string, config: Config): void {
		if (this.isOf(file, config)) return;
		if (config.snapshots.enabled) this.#shelves.set(file, { config, asked: [] });
		else this.#shelves.delete(file);
		this.#pace.forgive();
		this.#trouble = "";
		this.#crowdedOut.clear();
		this.#options.watch?.([...this.#shelves.values()].map((shelf) => shelf.config));
		this.review();
	}

	/** Takes over what an earlier snpd made. */
	adopt(templates: readonly Template[]): void {
		for (const template of templates) {
			if (this.#closed || this.#kept.has(template.key)) this.#options.remove(template);
			else this.#kept.set(template.key, { template, uses: 0, usedAtMs: template.madeAtMs });
		}
		this.review();
	}

	/**
	 * A template for a pod, as far as the pod's configuration file wants any; where none is there, one of its kind is made for the next.
	 * @param config the pod's own, which may be older than the file's
	 */
	async find(file: string, plan: PodPlan, config: Config): Promise<TemplateUse | undefined> {
		const shelf = this.#shelves.get(file);
		if (shelf === undefined || plan.confidential !== undefined) return undefined;
		const shape = await this.#options.shape(plan, config).catch(() => undefined);
		if (shape === undefined) return undefined;
		shelf.asked = [shape, ...shelf.asked.filter(({ key }) => key !== shape.key)].slice(0, MAX_KINDS);
		this.#crowdedOut.delete(shape.key);
		// The pod goes first.
		setImmediate(() => this.review());
		return this.of(shape);
	}

	/** The template of a kind, if there is one. */
	of({ key, plan, config }: Shape): TemplateUse | undefined {
		const kept = this.#kept.get(key);
		if (kept === undefined || !config.snapshots.enabled) return undefined;
		const { template } = kept;
		const program = plan.hypervisorPath;
		return {
			template,
			mode: config.snapshots.paging === "on-demand" && !this.#copyOnly.has(program) ? "OnDemand" : "Copy",
			onDemandRefused: (error) => {
				this.#copyOnly.add(program);
				this.#note(`${program} does not bring a template's memory back on demand: it is copied (snapshots.paging)`, error);
			},
			worked: () => {
				kept.uses++;
				kept.usedAtMs = Date.now();
				this.#restored++;
			},
			failed: (error) => {
				this.#failed++;
				this.#fail("a VM could not be restored from its template, and was booted", error);
				if (this.#kept.get(key) === kept) this.#drop(kept);
				this.review();
			},
		};
	}

	/** Runs a start that no making of a template shall disturb. */
	async during<T>(start: () => Promise<T>): Promise<T> {
		const ended = this.#pace.began();
		this.#schedule();
		try {
			return await start();
		} finally {
			ended();
			this.#schedule();
		}
	}

	/** Gives up templates, those first that were not used for the longest time, and makes none for a while: the node's memory is needed. @returns their bytes */
	shrink(count: number): number {
		this.#pace.hold();
		this.#cancelTimer();
		this.#making?.abort.abort();
		const given = this.#oldest().slice(0, Math.max(0, count));
		if (given.length > 0) this.#options.log.info("templates are given up", { templates: given.length });
		for (const kept of given) this.#drop(kept);
		this.review();
		return given.reduce((sum, { template }) => sum + template.bytes, 0);
	}

	/** Drops all, for good. */
	async close(): Promise<void> {
		this.#closed = true;
		this.#cancelTimer();
		this.#making?.abort.abort();
		await Promise.all([this.#making?.done, this.#reviewing.close()]);
		for (const kept of this.#kept.values()) this.#drop(kept);
	}

	summary(): TemplatesSummary {
		const nowMs = Date.now();
		const templates = [...this.#kept.values()].map(({ template: { name, key, size, bytes, madeAtMs }, uses }) => ({
			...{ name, key, vcpus: size.vcpus, memoryMib: size.memoryMib, bytes, ageMs: nowMs - madeAtMs, uses },
		}));
		const making = this.#making?.shape.key ?? "";
		return { enabled: this.wanted, templates, making, restored: this.#restored, failed: this.#failed, trouble: this.#trouble };
	}

	/** Compares what is there with what is wanted: drops what nobody wants, and has the rest made in its time. */
	review(): void {
		this.#reviewing.ask();
	}

	async #reviewAll(): Promise<void> {
		const wanted = await this.#wantedShapes();
		if (!this.#closed) this.#compare(wanted);
	}

	/** By kind, as they are now: files that were replaced make other kinds. */
	async #wantedShapes(): Promise<Map<string, Shape>> {
		const wanted = new Map<string, Shape>();
		for (const [file, { config, asked }] of this.#shelves) {
			try {
				const plans = [...asked.map(({ plan }) => plan), this.#options.usual(config)];
				for (const shape of await Promise.all(plans.map((plan) => this.#options.shape(plan, config)))) wanted.set(shape.key, shape);
			} catch (error) {
				this.#note(`no template can be made for ${file}`, error);
			}
		}
		return wanted;
	}

	#compare(wanted: ReadonlyMap<string, Shape>): void {
		for (const [key, kept] of this.#kept) if (!wanted.has(key)) this.#drop(kept);
		const { shape: made, abort } = this.#making ?? {};
		if (made !== undefined && !wanted.has(made.key)) abort?.abort();
		if (this.#missing.length === 0) this.#missingSinceMs = this.#clock.nowMs();
		this.#missing = [...wanted.values()].filter(({ key }) => !this.#kept.has(key) && !this.#crowdedOut.has(key) && key !== made?.key);
		this.#schedule();
	}

	#schedule(): void {
		this.#cancelTimer();
		if (this.#closed || this.#making !== undefined || this.#missing.length === 0) return;
		const waitMs = this.#pace.nextAtMs(this.#missingSinceMs) - this.#clock.nowMs();
		this.#cancelTimer = this.#clock.after(waitMs, () => (waitMs > MAX_TIMER_MS ? this.#schedule() : this.#begin()));
	}

	#begin(): void {
		const [shape] = this.#missing;
		if (shape === undefined || this.#making !== undefined || this.#closed) return;
		const abort = new AbortController();
		const done = this.#make(shape, abort.signal).finally(() => {
			this.#making = undefined;
			this.#missingSinceMs = this.#clock.nowMs();
			this.review();
		});
		this.#making = { shape, abort, done };
	}

	async #make(shape: Shape, signal: AbortSignal): Promise<void> {
		try {
			const maxBytes = Math.min(shape.config.snapshots.max_mib * BYTES_PER_MIB, this.#options.mostBytes());
			const template = await this.#options.make(shape, signal);
			this.#trouble = "";
			if (this.#closed || signal.aborted) this.#options.remove(template);
			else this.#add(template, maxBytes);
		} catch (error) {
			if (!signal.aborted) this.#fail("a template could not be made", error);
		}
	}

	#add(template: Template, maxBytes: number): void {
		for (const kept of this.#oldest()) {
			if (this.held.bytes + template.bytes <= maxBytes) break;
			this.#crowdedOut.add(kept.template.key);
			this.#drop(kept);
		}
		if (template.bytes > maxBytes) {
			this.#crowdedOut.add(template.key);
			this.#options.remove(template);
			const bound = `snapshots.max_mib and half of the file system of state_dir allow ${maxBytes}`;
			this.#note("a template does not fit", new Error(`it takes ${template.bytes} bytes, and ${bound}`));
			return;
		}
		this.#kept.set(template.key, { template, uses: 0, usedAtMs: Date.now() });
	}

	#oldest(): Kept[] {
		return [...this.#kept.values()].toSorted((one, other) => one.usedAtMs - other.usedAtMs);
	}

	#drop({ template }: Kept): void {
		this.#kept.delete(template.key);
		try {
			this.#options.remove(template);
		} catch (error) {
			this.#options.log.error("a template stays", error, { folder: template.folder });
		}
	}

	#fail(what: string, error: unknown): void {
		this.#pace.failed();
		this.#note(what, error);
	}

	#note(what: string, error: unknown): void {
		this.#trouble = `${what}: ${explain(error)}`;
		this.#options.log.warn(what, { reason: explain(error) });
	}
}
