/** One cold start by containerd's tasks. */
import { ContainerdApi } from "../test/support/containerd-api.ts";
import type { Ctr } from "../test/support/ctr.ts";
import { readTimeline, type Step } from "../test/support/timeline.ts";
import type { Runtime } from "./runtimes.ts";
import { timed } from "./scenario.ts";

const SNAPSHOTTER = "overlayfs";

/** One container from nothing to running and back; milliseconds as containerd's client sees them. */
export type ColdStart = {
	readonly createMs: number;
	readonly startMs: number;
	readonly totalMs: number;
	readonly removeMs: number;
	/** The shim's own steps within; empty for runtimes that tell none. */
	readonly steps: readonly Step[];
};

/** Starts and removes one container; its snapshot and record are made before the clock runs. */
export async function measureColdStart(ctr: Ctr, imageName: string, runtime: Runtime): Promise<ColdStart> {
	const { containerd } = ctr;
	const id = ctr.newId(`bench-${runtime.name}`);
	const config = runtime.config === undefined ? [] : ["--runtime-config-path", runtime.config];
	const flags = ["--runtime", runtime.type, ...config, "--snapshotter", SNAPSHOTTER];
	await ctr.callOk(["container", "create", ...flags, imageName, id, "sleep", "1000"]);
	const api = new ContainerdApi(containerd.address, containerd.namespace);
	try {
		const [, createMs] = await timed(async () => await api.createTask(id, SNAPSHOTTER));
		const [, startMs] = await timed(async () => await api.startTask(id));
		const steps = runtime.ours ? await readTimeline(containerd, id) : [];
		const [, removeMs] = await timed(async () => await api.removeTask(id));
		return { createMs, startMs, totalMs: createMs + startMs, removeMs, steps };
	} finally {
		api.close();
		await ctr.removeLeftover(id);
	}
}
