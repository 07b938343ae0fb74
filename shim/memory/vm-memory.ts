/**
 * The memory of one running VM: all that changes it goes through here, one change after another, so that growing and the balloon never fight.
 * Growing comes first: what a guest needs takes its balloon away.
 */

import { explain } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import { Mailbox } from "../base/mailbox.ts";
import type { Watch } from "../host/memory.ts";
import type { Exemption, VmChange, VmPort } from "./ports.ts";

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
}

/** How long nothing is taken from a guest that needed memory, and from one that ran out of it. */
const NEED_HOLD_MS = 30_000;
const OOM_HOLD_MS = 120_000;
const LEARN_MS = 10_000;

/** One VM's memory. */
export class VmMemory {
	readonly options: VmMemoryOptions;
	exempt: Exemption | undefined;
	/** Set by the controller while it watches: its process, and the groups with a limit above it. */
	watched = false;
	watch: Watch | undefined;
	readonly groups: string[] = [];
	/** CPU time when it was last looked at. */
	cpu: { readonly atMs: number; readonly cpuMs: number } | undefined;
	idle = false;
	/** Since when its balloon has not come to what was asked. */
	underwaySinceMs: number | undefined;
	#sizeBytes: number;
	#balloonBytes = 0;
	#heldUntilMs = 0;
	readonly #mailbox: Mailbox;

	constructor(options: VmMemoryOptions) {
		this.options = options;
		this.exempt = options.exempt;
		this.#sizeBytes = options.sizeBytes ?? 0;
		this.#mailbox = new Mailbox(`the memory of pod ${options.name}`);
		if (options.sizeBytes === undefined) void this.#mailbox.run(() => this.#learn());
	}

	/** Never rejects: a VM whose VMM does not tell is left as it is. */
	async #learn(): Promise<void> {
		try {
			const { sizeBytes, askedBytes } = await this.options.port.state(LEARN_MS);
			this.#sizeBytes = sizeBytes;
			this.#balloonBytes = askedBytes ?? 0;
			if (askedBytes === undefined) this.exempt ??= "no balloon";
		} catch (error) {
			this.exempt ??= "no balloon";
			this.options.log.warn("the hypervisor does not tell of the VM's memory: it keeps what it has", { reason: explain(error) });
		}
	}

	/** What the VM has, its balloon included. */
	get sizeBytes(): number {
		return this.#sizeBytes;
	}

	/** What its balloon was asked to take. */
	get balloonBytes(): number {
		return this.#balloonBytes;
	}

	/** True while it needed memory a short time ago. */
	held(nowMs: number): boolean {
		return nowMs < this.#heldUntilMs;
	}

	/** Leaves the VM alone for a while. */
	hold(ms: number = NEED_HOLD_MS): void {
		this.#heldUntilMs = Math.max(this.#heldUntilMs, Date.now() + ms);
	}

	/**
	 * Makes the VM larger; what its balloon has it gets back in the same request.
	 * @throws what the VMM throws
	 */
	async grow(change: VmChange): Promise<void> {
		this.hold();
		await this.#mailbox.run(async () => {
			await this.options.port.change(this.#balloonBytes > 0 ? { ...change, balloonBytes: 0 } : change);
			this.#balloonBytes = 0;
			this.#sizeBytes = change.ramBytes ?? this.#sizeBytes;
		});
	}

	/** Asks the balloon to take so much. @throws what the VMM throws */
	async setBalloon(bytes: number): Promise<void> {
		await this.#mailbox.run(async () => {
			// A need that came meanwhile wins.
			if (bytes > this.#balloonBytes && this.held(Date.now())) return;
			if (bytes === this.#balloonBytes) return;
			// A request whose answer is lost may be done all the same: until one is answered the larger balloon counts.
			this.#balloonBytes = Math.max(bytes, this.#balloonBytes);
			await this.options.port.change({ balloonBytes: bytes });
			this.#balloonBytes = bytes;
		});
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

	async #release(why: string): Promise<void> {
		if (this.exempt !== undefined || this.#balloonBytes === 0) return;
		this.options.log.info("the VM gets its memory back", { why, mib: this.#balloonBytes / 2 ** 20 });
		await this.setBalloon(0).catch((error: unknown) =>
			this.options.log.error("the VM does not get its memory back", { reason: explain(error) }),
		);
	}
}
