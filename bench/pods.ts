/** What a pod costs through CRI: its start, its removal, and what goes over its network. */
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { CaseContext, SLEEP, type TestContainer, type TestPod } from "../test/conformance/context.ts";
import type { CriBed } from "../test/support/cri/bed.ts";
import { BRIDGE_ADDRESS } from "../test/support/cri/containerd-config.ts";
import { buildImage, busyboxMembers, type TestImage } from "../test/support/image.ts";
import { Child, runOk } from "../test/support/process.ts";
import { readFile } from "node:fs/promises";
import { readTimeline } from "../test/support/timeline.ts";
import type { Span } from "./results.ts";
import type { Runtime } from "./runtimes.ts";
import { timed, type Bench } from "./scenario.ts";

/** One pod with one container from nothing to running and back; milliseconds as kubelet would see them. */
export type PodRun = {
	/** RunPodSandbox. */
	readonly runPodMs: number;
	/** CreateContainer and StartContainer. */
	readonly startContainerMs: number;
	/** StopPodSandbox, with the container running. */
	readonly stopPodMs: number;
	/** RemovePodSandbox. */
	readonly removePodMs: number;
	/** Both. */
	readonly removalMs: number;
	/** From the last answer until nothing of the pod is left; kubelet's part, the removal of the pod's control groups, is in it. */
	readonly givenBackMs: number;
	/** The shim's own steps of the start; none of runtimes that tell none. */
	readonly steps: readonly Span[];
};

/** Which way traffic goes, and over how many connections at once. */
export type Flow = { readonly direction: "pod-to-host" | "host-to-pod"; readonly streams: number };

/** The flows that are measured. */
export const FLOWS: readonly Flow[] = [
	{ direction: "pod-to-host", streams: 1 },
	{ direction: "pod-to-host", streams: 4 },
	{ direction: "host-to-pod", streams: 1 },
	{ direction: "host-to-pod", streams: 4 },
];

const PORT = 5201;
const FLOW_MS = 2_000;
const FLOW_TIMEOUT_MS = 60_000;
const COMPILE_TIMEOUT_MS = 120_000;

/** The bench's image, which has the traffic program, and the program's path on the host. */
export type TrafficImage = { readonly image: TestImage; readonly program: string };

/** Builds the traffic program (`traffic.rs`) and an image that has it. @throws Error with rustc's words */
export async function buildTrafficImage(dir: string): Promise<TrafficImage> {
	const program = join(dir, "traffic");
	const source = new URL("traffic.rs", import.meta.url).pathname;
	execFileSync("rustc", ["--edition", "2021", "-O", "-C", "target-feature=+crt-static", "-o", program, source], {
		timeout: COMPILE_TIMEOUT_MS,
		stdio: ["ignore", "inherit", "inherit"],
	});
	const traffic = { kind: "file", path: "bin/traffic", data: await readFile(program), mode: 0o755 } as const;
	const image = await buildImage(dir, { name: "docker.io/library/snp-traffic:latest", members: [...busyboxMembers(), traffic] });
	return { image, program };
}

/** Starts and removes one pod, and waits until nothing is left of it. */
export async function measurePod({ bed, givenBack }: Bench, runtime: Runtime): Promise<PodRun> {
	const context = new CaseContext(bed, runtime.name, runtime.ours);
	try {
		const [pod, runPodMs] = await timed(() => context.pod());
		const [, startContainerMs] = await timed(() => pod.run(SLEEP));
		const steps = runtime.ours ? await readTimeline(bed.containerd, pod.id) : [];
		const [, stopPodMs] = await timed(() => pod.stop());
		const [, removePodMs] = await timed(() => pod.remove());
		const [, givenBackMs] = await timed(async () => {
			await context.clean();
			await givenBack();
		});
		return { runPodMs, startContainerMs, stopPodMs, removePodMs, removalMs: stopPodMs + removePodMs, givenBackMs, steps };
	} finally {
		await context.clean();
	}
}

/** Measures every flow of one pod. @returns MiB per second, in the order of `FLOWS` */
export async function measureFlows(bed: CriBed, runtime: Runtime, { image, program }: TrafficImage): Promise<number[]> {
	const context = new CaseContext(bed, runtime.name, runtime.ours);
	try {
		const pod = await context.pod();
		const container = await pod.run(SLEEP, { image: { image: image.name } });
		const rates: number[] = [];
		for (const [index, flow] of FLOWS.entries()) rates.push(await measureFlow(bed, pod, container, program, flow, PORT + index));
		return rates;
	} finally {
		await context.clean();
	}
}

async function measureFlow(
	bed: CriBed,
	pod: TestPod,
	container: TestContainer,
	program: string,
	{ direction, streams }: Flow,
	port: number,
): Promise<number> {
	const receive = ["receive", String(port), String(streams)];
	const send = (host: string): string[] => ["send", host, String(port), String(streams), String(FLOW_MS)];
	if (direction === "pod-to-host") {
		const receiver = new Child(bed.containerd.inside(program, ...receive), {});
		try {
			await receiver.waitForOutput(/ready/, FLOW_TIMEOUT_MS);
			await container.output(`traffic ${send(BRIDGE_ADDRESS).join(" ")}`);
			return rateOf((await receiver.finished(FLOW_TIMEOUT_MS)).stdout);
		} finally {
			receiver.kill();
		}
	}
	const ip = (await bed.client.podStatus(pod.id)).network?.ip ?? "";
	await container.output(
		`traffic ${receive.join(" ")} < /dev/null > /tmp/received 2>&1 & until grep -q ready /tmp/received; do sleep 0.1; done`,
	);
	await runOk(bed.containerd.inside(program, ...send(ip)), { timeoutMs: FLOW_TIMEOUT_MS });
	return rateOf(await container.output("until [ $(wc -l < /tmp/received) -ge 2 ]; do sleep 0.1; done; cat /tmp/received"));
}

/** From the receiver's output, MiB per second. */
function rateOf(output: string): number {
	const [, bytes, micros] = /^ready\n(\d+) (\d+)/.exec(output) ?? [];
	if (bytes === undefined || Number(micros) === 0) throw new Error(`the receiver said ${JSON.stringify(output)}`);
	return Number(bytes) / 1.048576 / Number(micros);
}
