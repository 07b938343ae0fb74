/**
 * The memory of one running VM: all that changes it goes through here, one change after another, so that growing and the balloon never fight.
 * Growing comes first: what a guest needs takes its balloon away. What the balloon has may be unknown: its VMM is asked until it tells, and what is unknown
 * counts as something to give back.
 */

import { MONOTONIC } from "../base/clock.ts";
import type { Clock } from "../base/clock.ts";
import { explain } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { Mailbox } from "../base/mailbox.ts";
import type { Watch } from "../host/memory.ts";
import type { Exemption, VmChange, VmPort, VmState } from "./ports.ts";

/** What a VM's memory begins with. */
export interface VmMemoryOptions {
	/** For people: the pod's id. */
	readonly name: string;
	readonly namespace: string;
	readonly port: VmPort;
	/** What a new VM has; undefined for one that an earlier snpd started: its VMM is asked. */
	readonly sizeBytes: number | undefined;
	readonly floorBytes: number;
	readonly exempt: Exemption | undefined;
	/** The VMM's process, and the control group that counts it. */
	readonly pid: number;
	readonly startTime: bigint;
	readonly cgroup: string | undefined;
	readonly log: Log;
	/** This process's own unless given. */
	readonly clock?: Clock;
}

/** How long nothing is taken from a guest that needed memory, and from one that ran out of it. */
const NEED_HOLD_MS = 30_000;
const OOM_HOLD_MS = 120_000;
const LEARN_MS = 5_000;
/** One that did not answer, or could not be changed, is let rest: doubled each time up to the longest. */
const REST_MS = 5_000;
const LONGEST_REST_MS = 60_000;

/** One VM's memory. */
export class VmMemory {
	readonly options: VmMemoryOptions;
	exempt: Exemption | undefined;
	/** Set by the controller while it watches: its process, and the groups with a limit above it. */
	watched = false;
	watch: Watch | undefined;
	readonly groups: string[] = [];
	/** CPU time when it was last marked: after it was asked. */
	cpu: { readonly atMs: number; readonly cpuMs: number } | undefined;
	idle = false;
	/** The number of its guest's last turn to be asked, among all turns. */
	turn = -1;
	/** It is being asked. */
	asking = false;
	/** Since when its balloon has not come to what was asked. */
	underwaySinceMs: number | undefined;
	readonly #clock: Clock;
	#sizeBytes: number;
	#known: boolean;
	#balloonBytes = 0;
	#heldUntilMs = Number.NEGATIVE_INFINITY;
	#failures = 0;
	#restsUntilMs = Number.NEGATIVE_INFINITY;
	/** Changes that wait or are under way, and how many there ever were. */
	#changing = 0;
	#revision = 0;
	#releasing: Promise<boolean> | undefined;
	#owed = false;
	readonly #mailbox: Mailbox;

	constructor(options: VmMemoryOptions) {
		this.options = options;
		this.exempt = options.exempt;
		this.#clock = options.clock ?? MONOTONIC;
		this.#sizeBytes = options.sizeBytes ?? 0;
		this.#known = options.sizeBytes !== undefined;
		this.#mailbox = new Mailbox(`the memory of pod ${options.name}`);
		if (!this.#known) void this.#mailbox.run(() => this.#learn());
	}

	/** Never rejects: a VM whose VMM does not tell now is asked again. */
	async #learn(): Promise<void> {
		try {
			this.#take(await this.options.port.state(LEARN_MS));
		} catch (error) {
			this.options.log.warn("the hypervisor does not tell of the VM's memory yet: it is asked again", { reason: explain(error) });
		}
	}

	#take({ sizeBytes, askedBytes }: VmState): void {
		if (!this.#known) this.#sizeBytes = sizeBytes;
		this.#known = true;
		this.#balloonBytes = askedBytes ?? 0;
		if (askedBytes === undefined) this.exempt ??= "no balloon";
	}

	/** What the VM has, its balloon included; 0 while it is not known. */
	get sizeBytes(): number {
		return this.#sizeBytes;
	}

	/** What its balloon was asked to take, as far as it is known. */
	get balloonBytes(): number {
		return this.#balloonBytes;
	}

	/** False until its VMM has told what an earlier snpd has asked for. */
	get known(): boolean {
		return this.#known;
	}

	/** True while it needed memory a short time ago. */
	get held(): boolean {
		return this.#clock.nowMs() < this.#heldUntilMs;
	}

	/** True while it is let alone because it did not answer. */
	get resting(): boolean {
		return this.#clock.nowMs() < this.#restsUntilMs;
	}

	/** True when its last answer has come, and in time. */
	get answers(): boolean {
		return this.#failures === 0;
	}

	/** True while a change waits or is under way. */
	get changing(): boolean {
		return this.#changing > 0;
	}

	/** It was to get all of its memory back, and that has not been done yet. */
	get owed(): boolean {
		return this.#owed;
	}

	/** Counts changes. */
	get revision(): number {
		return this.#revision;
	}

	/** Leaves the VM alone for a while. */
	hold(ms: number = NEED_HOLD_MS): void {
		this.#heldUntilMs = Math.max(this.#heldUntilMs, this.#clock.nowMs() + ms);
	}

	/** It did not answer, or could not be changed: it rests for a while, longer each time in a row. */
	failed(): void {
		this.#restsUntilMs = this.#clock.nowMs() + Math.min(REST_MS * 2 ** this.#failures, LONGEST_REST_MS);
		this.#failures += 1;
	}

	/** It has answered. */
	answered(): void {
		this.#failures = 0;
	}

	/** What its VMM says, unless it was changed since. @param revision when the VMM was asked */
	accept(state: VmState, revision: number): void {
		if (revision === this.#revision && !this.changing) this.#take(state);
	}

	/**
	 * Makes the VM larger; what its balloon has it gets back in the same request, or right after it when that is not known.
	 * @throws what the VMM throws
	 */
	async grow(change: VmChange): Promise<void> {
		this.hold();
		await this.#change(async () => {
			if (!this.#known) await this.#learn();
			const inflated = this.#known && this.#balloonBytes > 0;
			await this.options.port.change(inflated ? { ...change, balloonBytes: 0 } : change);
			if (inflated) this.#balloonBytes = 0;
			this.#sizeBytes = change.ramBytes ?? this.#sizeBytes;
		});
		void this.#release("growth");
	}

	/** Asks the balloon to take so much. @throws what the VMM throws */
	async setBalloon(bytes: number): Promise<void> {
		await this.#change(async () => {
			// A need that came meanwhile wins.
			if (bytes > this.#balloonBytes && this.held) return;
			if (this.#known && bytes === this.#balloonBytes) return;
			// A request whose answer is lost may be done all the same: until one is answered the larger balloon counts.
			this.#balloonBytes = Math.max(bytes, this.#balloonBytes);
			await this.options.port.change({ balloonBytes: bytes });
			this.#balloonBytes = bytes;
		});
	}

	async #change(work: () => Promise<void>): Promise<void> {
		this.#changing += 1;
		this.#revision += 1;
		try {
			await this.#mailbox.run(work);
		} finally {
			this.#changing -= 1;
			this.#revision += 1;
		}
	}

	/** Work comes that may need memory: the balloon goes. Never rejects. */
	async need(): Promise<void> {
		this.hold();
		await this.#release("work that comes");
	}

	/** The guest has ended a process for want of memory: the balloon goes, and nothing is taken for a while. Never rejects. */
	async outOfMemory(): Promise<void> {
		this.hold(OOM_HOLD_MS);
		await this.#release("the guest ran out of memory");
	}

	/** Nothing is ever taken from it again, once it has all of its memory; until then this may be tried again. Never rejects. */
	async leaveAlone(why: Exemption): Promise<void> {
		this.hold();
		if (await this.#release("nothing can be taken from it")) this.exempt ??= why;
		else this.failed();
	}

	/** @returns whether it has all of its memory */
	#release(why: string): Promise<boolean> {
		if (this.exempt !== undefined || (this.#known && this.#balloonBytes === 0)) return Promise.resolve(true);
		this.#releasing ??= this.#releaseNow(why).finally(() => (this.#releasing = undefined));
		return this.#releasing;
	}

	async #releaseNow(why: string): Promise<boolean> {
		const { log } = this.options;
		log.info("the VM gets its memory back", { why, mib: this.#known ? this.#balloonBytes / 2 ** 20 : undefined });
		this.#owed = true;
		try {
			await this.setBalloon(0);
			this.#owed = false;
			return true;
		} catch (error) {
			log.error("the VM does not get its memory back", error);
			return false;
		}
	}
}
