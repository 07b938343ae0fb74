/** A pool whose VMs are objects: their number and their moment can be looked at. */
import { deferred } from "../../shim/base/deadline.ts";
import type { Clock } from "../../shim/base/clock.ts";
import type { Deferred } from "../../shim/base/deadline.ts";
import { Log } from "../../shim/base/log.ts";
import { defaultConfig } from "../../shim/config/schema.ts";
import type { Config } from "../../shim/config/schema.ts";
import type { PodPlan } from "../../shim/pod/plan.ts";
import type { PoolTimes } from "../../shim/pod/pool/pacing.ts";
import { Pool } from "../../shim/pod/pool/pool.ts";
import type { WarmVm } from "../../shim/pod/pool/pool.ts";
import { usualPlan } from "../../shim/pod/pool/shape.ts";
import type { Shape } from "../../shim/pod/pool/shape.ts";
import { eventually } from "./retry.ts";

export const WAIT_MS = 10_000;
export const FILE = "/etc/config.toml";
/** Longer than any test. */
export const NEVER = 3_600_000;
const AT_ONCE: Partial<PoolTimes> = { quiet: 0, patience: NEVER, retry: 0, longestRetry: 0, hold: 0 };

export interface FalseVm extends WarmVm {
	readonly die: Deferred<string>;
	ended: boolean;
}

/** A pool whose VMs are objects; a boot lasts until its gate opens, if there is one. */
export class PoolBed {
	readonly pool: Pool<FalseVm>;
	readonly booted: FalseVm[] = [];
	boots = 0;
	emptied = 0;
	gate: Promise<unknown> | undefined;
	/** Part of every key, as the state of the files is. */
	files = "1";

	/** Files are missing: no kind of VM can be told. */
	missing = false;
	/** Ends of VMs wait for it. */
	endGate: Promise<unknown> | undefined;

	constructor(times: Partial<PoolTimes> = {}, clock?: Clock) {
		this.pool = new Pool({
			log: new Log(() => undefined, "error"),
			usual: usualPlan,
			shape: (plan, config) =>
				this.missing ? Promise.reject(new Error("no kernel")) : Promise.resolve({ key: keyOf(plan, this.files), plan, config }),
			boot: (shape, signal) => this.#boot(shape, signal),
			emptied: () => void this.emptied++,
			times: { ...AT_ONCE, ...times },
			...(clock === undefined ? {} : { clock }),
		});
	}

	async #boot({ key, plan }: Shape, signal: AbortSignal): Promise<FalseVm> {
		this.boots++;
		await this.gate;
		signal.throwIfAborted();
		const die = deferred<string>();
		const vm: FalseVm = {
			...{
				name: String(this.boots),
				key,
				size: plan,
				pid: this.boots,
				startTime: 0n,
				readyAtMs: Date.now(),
				died: die.promise,
				die,
				ended: false,
			},
			end: async () => {
				vm.ended = true;
				await this.endGate;
			},
		};
		this.booted.push(vm);
		return vm;
	}

	/** Waits until so many are ready and none is on its way. */
	async holds(count: number): Promise<readonly FalseVm[]> {
		return await eventually(`${count} VMs`, WAIT_MS, () => {
			const { vms } = this.pool.summary();
			const settled = vms.length === count && vms.every(({ state }) => state === "ready");
			return settled ? this.booted.filter(({ name }) => vms.some((vm) => vm.name === name)) : undefined;
		});
	}
}

export const keyOf = ({ memoryMib }: PodPlan, files: string): string => `${memoryMib} ${files}`;
export const wants = (size: number, max = 0): Config => ({ ...defaultConfig(), pool: { size, max, memory_mib: 4096 } });
export const plan = usualPlan(defaultConfig());
export const large = { ...plan, memoryMib: 768 };
