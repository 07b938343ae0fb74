/** Bytes to a container's process and back, through its standard streams. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, constants, openSync } from "node:fs";
import { join } from "node:path";
import { removePodCgroups } from "../../test/support/cgroups.ts";
import { runOk } from "../../test/support/process.ts";
import { ociSpec, PodNamespace } from "../bundle.ts";
import { DirectShim, ShimGroup } from "../direct-shim.ts";
import { Samples } from "../results.ts";
import { Roots } from "../roots.ts";
import type { Runtime } from "../runtimes.ts";
import type { Bench, Scenario } from "../scenario.ts";

const MIB = 2 ** 20;
const TIMEOUT_MS = 60_000;
/** The port of `null-vmm` that brings back what comes. */
const ECHO_PORT = "7";
/** The column of the comparison: the same bytes on one stream of the VM, with nothing of the shim's between. */
export const RAW = "raw vsock";
/** Another one: the same bytes through two FIFOs with the process right between them, which no runtime with FIFOs can beat. */
export const FIFOS = "FIFOs alone";
/** Many small writes, as of a program that logs by lines, and few large ones. */
const KINDS = [
	{ id: "stdio.lines", name: "lines of 64 bytes, to `cat` and back", bytes: 8 * MIB, chunk: 64 },
	{ id: "stdio.large", name: "writes of 1 MiB, to `cat` and back", bytes: 256 * MIB, chunk: MIB },
] as const;

/** MiB per second of one exchange. */
async function rate(argv: readonly string[], bytes: number): Promise<number> {
	const { stdout } = await runOk(argv, { timeoutMs: TIMEOUT_MS });
	return bytes / MIB / (Number(stdout) / 1e6);
}

/** A process between two FIFOs, until `end`. */
async function startEcho(bench: Bench): Promise<{ readonly fifos: readonly [string, string]; readonly end: () => Promise<void> }> {
	const { rootDir } = bench.bed.containerd;
	const fifos = [join(rootDir, "echo.in"), join(rootDir, "echo.out")] as const;
	await runOk(["mkfifo", ...fifos]);
	const child = spawn(bench.tools.stdio, ["echo", ...fifos], { stdio: ["ignore", "pipe", "inherit"] });
	const ended = once(child, "exit");
	await Promise.race([once(child.stdout, "data"), ended.then(() => Promise.reject(new Error("the process between the FIFOs ended")))]);
	const end = async (): Promise<void> => {
		child.kill("SIGKILL");
		await ended;
	};
	return { fifos, end };
}

/** A pod whose container is `cat`, until `end`. */
async function startCat(bench: Bench, runtime: Runtime, roots: Roots) {
	const { containerd } = bench.bed;
	const podId = `cat-${runtime.name}`;
	const containerId = `${podId}-c`;
	const namespace = await PodNamespace.make(containerd, podId, false);
	const [podRoot, root] = [await roots.take(podId), await roots.take(containerId)];
	const spec = (kind: "sandbox" | "container", args: readonly string[]): object =>
		ociSpec({ podId, kind, args, network: namespace.path, cgroupsPath: `/${containerd.cgroupMark}/${podId}/${kind}` });
	const group = new ShimGroup(containerd, runtime);
	const shim = await DirectShim.start(containerd, { runtime, group, tools: bench.tools }, podId, spec("sandbox", ["sleep", "100000"]));
	const fifo = (stream: string): string => join(containerd.rootDir, `${podId}.${stream}`);
	const fifos = { stdin: fifo("in"), stdout: fifo("out"), stderr: fifo("err") };
	await runOk(["mkfifo", ...Object.values(fifos)]);
	// Input ends with its last writer, and runc's shim waits until somebody reads what goes wrong.
	const held = [fifos.stdin, fifos.stderr].map((path) => openSync(path, constants.O_RDWR | constants.O_NONBLOCK));
	await shim.create(podId, podRoot);
	await shim.startTask(podId);
	await shim.addBundle(containerId, spec("container", ["cat"]));
	return {
		fifos,
		vsock: containerd.seen(join(containerd.stateDir, "p", containerd.podKey(podId), "vsock.sock")),
		/** Create waits for who opens the FIFOs, under some runtimes: they are opened meanwhile. */
		begin: async (): Promise<void> => {
			await shim.create(containerId, root, fifos);
			await shim.startTask(containerId);
		},
		end: async (): Promise<void> => {
			await shim.removeTask(containerId);
			await shim.removeTask(podId);
			await shim.end();
			for (const fd of held) closeSync(fd);
			await roots.give(containerId);
			await roots.give(podId);
			await namespace.remove();
			await removePodCgroups(containerd.cgroupMark, podId);
		},
	};
}

async function run(bench: Bench) {
	const samples = new Samples();
	const roots = new Roots(bench.bed);
	const { stdio } = bench.tools;
	const echo = await startEcho(bench);
	const pods: { readonly runtime: Runtime; readonly cat: Awaited<ReturnType<typeof startCat>> }[] = [];
	try {
		for (const runtime of bench.runtimes) {
			const cat = await startCat(bench, runtime, roots);
			pods.push({ runtime, cat });
			const warm = runOk([stdio, "fifo", cat.fifos.stdin, cat.fifos.stdout, String(MIB), String(MIB)], { timeoutMs: TIMEOUT_MS });
			await Promise.all([cat.begin(), warm]);
		}
		const rounds = bench.runs(10, 3);
		for (let round = 1; round <= rounds; round++) {
			for (const { id, bytes, chunk } of KINDS) {
				const amount = [String(bytes), String(chunk)];
				samples.add(id, FIFOS, await rate([stdio, "fifo", ...echo.fifos, ...amount], bytes));
				for (const { runtime, cat } of pods) {
					samples.add(id, runtime.name, await rate([stdio, "fifo", cat.fifos.stdin, cat.fifos.stdout, ...amount], bytes));
					if (runtime.ours) samples.add(id, RAW, await rate([stdio, "vsock", cat.vsock, ECHO_PORT, ...amount], bytes));
				}
			}
			bench.progress(`${round} of ${rounds}`);
		}
		for (const { cat } of pods) await cat.end();
	} finally {
		await echo.end();
		roots.close();
	}
	return { figures: KINDS.map(({ id, name }) => samples.figure(id, name, "MiB/s", "more")) };
}

/** Standard streams. */
export const stdio: Scenario = {
	name: "stdio",
	what: "standard streams: from a FIFO to the process and back to another, beside one stream of the VM's vsock without a shim, and the process right between two FIFOs",
	vm: "null",
	prepare: async ({ bed, runtimes }) => {
		await ShimGroup.prepare(bed.containerd, runtimes);
		await PodNamespace.prepare(bed.containerd);
	},
	run,
};
