/** One cold start by containerd's tasks. */
import { ContainerdApi } from "../test/support/containerd-api.ts";
import type { Ctr } from "../test/support/ctr.ts";
import { readTimeline, type Step } from "../test/support/timeline.ts";
import type { Runtime } from "./runtimes.ts";
import { timed, type Bench } from "./scenario.ts";

const SNAPSHOTTER = "overlayfs";

/** One container from nothing to running and back; milliseconds as containerd's client sees them. */
export type ColdStart = Started & {
	readonly removeMs: number;
	/** From the last answer until nothing of the container is left. */
	readonly givenBackMs: number;
};

/** A container that has been started. */
export type Started = {
	readonly createMs: number;
	readonly startMs: number;
	readonly totalMs: number;
	/** The shim's own steps within; empty for runtimes that tell none. */
	readonly steps: readonly Step[];
};

/** One container whose snapshot and record are there. Its owner calls `close`. */
export class OneContainer {
	readonly #ctr: Ctr;
	readonly #id: string;
	readonly #runtime: Runtime;
	readonly #api: ContainerdApi;

	private constructor(ctr: Ctr, id: string, runtime: Runtime) {
		this.#ctr = ctr;
		this.#id = id;
		this.#runtime = runtime;
		this.#api = new ContainerdApi(ctr.containerd.address, ctr.containerd.namespace);
	}

	/** Makes the record and the snapshot. */
	static async make(ctr: Ctr, imageName: string, runtime: Runtime): Promise<OneContainer> {
		const id = ctr.newId(`bench-${runtime.name}`);
		const config = runtime.config === undefined ? [] : ["--runtime-config-path", runtime.config];
		const flags = ["--runtime", runtime.type, ...config, "--snapshotter", SNAPSHOTTER];
		await ctr.callOk(["container", "create", ...flags, imageName, id, "sleep", "1000"]);
		return new OneContainer(ctr, id, runtime);
	}

	/** Create and Start. */
	async start(): Promise<Started> {
		const [, createMs] = await timed(async () => await this.#api.createTask(this.#id, SNAPSHOTTER));
		const [, startMs] = await timed(async () => await this.#api.startTask(this.#id));
		const steps = this.#runtime.ours ? await readTimeline(this.#ctr.containerd, this.#id) : [];
		return { createMs, startMs, totalMs: createMs + startMs, steps };
	}

	/** Kill, Wait and Delete. @returns their milliseconds */
	async remove(): Promise<number> {
		return (await timed(async () => await this.#api.removeTask(this.#id)))[1];
	}

	/** Removes what is left of it. */
	async close(): Promise<void> {
		this.#api.close();
		await this.#ctr.removeLeftover(this.#id);
	}
}

/** Starts and removes one container, and waits until nothing is left of it. */
export async function measureColdStart(bench: Bench, ctr: Ctr, runtime: Runtime): Promise<ColdStart> {
	const container = await OneContainer.make(ctr, bench.bed.image.name, runtime);
	try {
		const started = await container.start();
		const removeMs = await container.remove();
		const [, givenBackMs] = await timed(bench.givenBack);
		return { ...started, removeMs, givenBackMs };
	} finally {
		await container.close();
	}
}
