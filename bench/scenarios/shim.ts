/** What a shim is asked for a pod's life, call by call, and the processor time that it takes. */
import { removePodCgroups } from "../../test/support/cgroups.ts";
import { readTimeline } from "../../test/support/timeline.ts";
import { ociSpec, PodNamespace } from "../bundle.ts";
import { DirectShim, ShimGroup } from "../direct-shim.ts";
import { Samples, type Span } from "../results.ts";
import { Roots } from "../roots.ts";
import type { Runtime } from "../runtimes.ts";
import { byTurns, type Bench, type Scenario } from "../scenario.ts";
import { medianTimeline } from "../timelines.ts";

const SLEEP = ["sleep", "100000"];

/** Everything of one pod's life. */
async function life(bench: Bench, runtime: Runtime, roots: Roots, group: ShimGroup, podId: string, network: boolean) {
	const { containerd } = bench.bed;
	const containerId = `${podId}-c`;
	const namespace = await PodNamespace.make(containerd, podId, network);
	const [podRoot, root] = [await roots.take(podId), await roots.take(containerId)];
	const spec = (kind: "sandbox" | "container", id: string): object =>
		ociSpec({ podId, kind, args: SLEEP, network: namespace.path, cgroupsPath: `/${containerd.cgroupMark}/${podId}/${id}` });
	const cpuBefore = group.cpuMs();
	const shim = await DirectShim.start(containerd, { runtime, group, tools: bench.tools }, podId, spec("sandbox", podId));
	let measured;
	try {
		const createMs = await shim.create(podId, podRoot);
		await shim.startTask(podId);
		await shim.addBundle(containerId, spec("container", containerId));
		const containerMs = (await shim.create(containerId, root)) + (await shim.startTask(containerId));
		const cpuMs = group.cpuMs() - cpuBefore;
		const steps = runtime.ours ? await readTimeline(containerd, podId) : [];
		const removeMs = (await shim.removeTask(containerId)) + (await shim.removeTask(podId));
		await shim.end();
		measured = { startMs: shim.startMs, createMs, containerMs, removeMs, cpuMs, steps };
	} finally {
		await roots.give(podId);
		await roots.give(containerId);
		await namespace.remove();
		await removePodCgroups(containerd.cgroupMark, podId);
	}
	// What is put off belongs to the pod's life, too.
	await bench.givenBack();
	return { ...measured, cpuLifeMs: group.cpuMs() - cpuBefore };
}

async function run(bench: Bench) {
	const samples = new Samples();
	const roots = new Roots(bench.bed);
	const groups = new Map(bench.runtimes.map((runtime) => [runtime.name, new ShimGroup(bench.bed.containerd, runtime)]));
	const timelines: (readonly Span[])[] = [];
	let pods = 0;
	try {
		await byTurns(bench, bench.runs(30, 5), async (runtime, counted) => {
			const group = groups.get(runtime.name);
			if (group === undefined) return;
			const bare = await life(bench, runtime, roots, group, `pod-${++pods}`, false);
			const joined = await life(bench, runtime, roots, group, `pod-${++pods}`, true);
			if (!counted) return;
			const { name, ours } = runtime;
			if (ours) timelines.push(joined.steps);
			for (const { startMs, containerMs, cpuMs, cpuLifeMs } of [bare, joined]) {
				samples.add("shim.start", name, startMs);
				samples.add("shim.container", name, containerMs);
				samples.add("shim.cpu", name, cpuMs);
				samples.add("shim.cpu-life", name, cpuLifeMs);
			}
			samples.add("shim.sandbox", name, bare.createMs);
			samples.add("shim.sandbox-network", name, joined.createMs);
			samples.add("shim.remove", name, bare.removeMs);
			samples.add("shim.remove-network", name, joined.removeMs);
		});
	} finally {
		roots.close();
	}
	return {
		figures: [
			samples.figure("shim.start", "`start`, the command"),
			samples.figure("shim.sandbox", "Create of the sandbox, loopback alone"),
			samples.figure("shim.sandbox-network", "Create of the sandbox, with an interface"),
			samples.figure("shim.container", "Create and Start of a container"),
			samples.figure("shim.remove", "Kill, Wait and Delete of both, loopback alone"),
			samples.figure("shim.remove-network", "Kill, Wait and Delete of both, with an interface"),
			samples.figure("shim.cpu", "processor time until the container runs"),
			samples.figure("shim.cpu-life", "processor time of the whole life"),
		],
		timeline: medianTimeline(timelines),
	};
}

/** The shim's calls without containerd. */
export const shim: Scenario = {
	name: "shim",
	what: "a pod's life by the calls of its shim, without containerd; processor time of the shim, its daemon and what they run",
	vm: "null",
	prepare: async ({ bed, runtimes }) => {
		await ShimGroup.prepare(bed.containerd, runtimes);
		await PodNamespace.prepare(bed.containerd);
	},
	run,
};
