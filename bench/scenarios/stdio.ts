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
const KIB = 2 ** 10;
const TIMEOUT_MS = 120_000;
/** What `cat` takes at a time. */
const CAT = 128 * KIB;
/** The column of the comparison: the same bytes on one stream of the VM, with nothing of the shim's between. */
export const RAW = "raw vsock";
/** Another one: the same bytes through two FIFOs with the process right between them, which no runtime with FIFOs can beat. */
export const FIFOS = "FIFOs alone";

/** A program that brings back what comes, what is sent to it, and where the raw stream has its like. */
type Kind = {
	readonly id: string;
	readonly name: string;
	readonly args: readonly string[];
	readonly bytes: number;
	readonly chunk: number;
	/** How much the program reads and writes at a time. */
	readonly piece: number;
	/** The port of `null-vmm` that brings back what comes in the same pieces; none where nothing is measured beside. */
	readonly port?: string;
};

/** Many small writes, as of a program that logs by lines, and few large ones. */
const KINDS: readonly Kind[] = [
	{
		id: "stdio.lines",
		name: "lines of 64 bytes, to `dd bs=64` and back",
		args: ["dd", "bs=64"],
		bytes: 8 * MIB,
		chunk: 64,
		piece: 64,
		port: "8",
	},
	{ id: "stdio.large", name: "writes of 1 MiB, to `cat` and back", args: ["cat"], bytes: 256 * MIB, chunk: MIB, piece: CAT, port: "7" },
];
/** Less of the same: the guest is emulated. */
const GUEST_KINDS: readonly Kind[] = [
	{
		id: "stdio-guest.lines",
		name: "lines of 64 bytes, to `dd bs=64` and back",
		args: ["dd", "bs=64"],
		bytes: 512 * KIB,
		chunk: 64,
		piece: 64,
	},
	{ id: "stdio-guest.large", name: "writes of 1 MiB, to `cat` and back", args: ["cat"], bytes: 32 * MIB, chunk: MIB, piece: CAT },
];

/** MiB per second of one exchange. */
async function rate(argv: readonly string[], bytes: number): Promise<number> {
	const { stdout } = await runOk(argv, { timeoutMs: TIMEOUT_MS });
	return bytes / MIB / (Number(stdout) / 1e6);
}

/** A process between two FIFOs, until `end`. */
async function startBetween(bench: Bench, { id, piece }: Kind) {
	const { rootDir } = bench.bed.containerd;
	const fifos = { stdin: join(rootDir, `${id}.echo.in`), stdout: join(rootDir, `${id}.echo.out`) };
	await runOk(["mkfifo", ...Object.values(fifos)]);
	const child = spawn(bench.tools.stdio, ["echo", ...Object.values(fifos), String(piece)], { stdio: ["ignore", "pipe", "inherit"] });
	const ended = once(child, "exit");
	await Promise.race([once(child.stdout, "data"), ended.then(() => Promise.reject(new Error("the process between the FIFOs ended")))]);
	const end = async (): Promise<void> => {
		child.kill("SIGKILL");
		await ended;
	};
	return { fifos, end };
}

/** A pod whose container is a program of a kind, until `end`. */
async function startPod(bench: Bench, runtime: Runtime, roots: Roots, { id, args }: Kind) {
	const { containerd } = bench.bed;
	const podId = `${id.replaceAll(".", "-")}-${runtime.name}`;
	const containerId = `${podId}-c`;
	const namespace = await PodNamespace.make(containerd, podId, false);
	const [podRoot, root] = [await roots.take(podId), await roots.take(containerId)];
	const spec = (kind: "sandbox" | "container", words: readonly string[]): object =>
		ociSpec({ podId, kind, args: words, network: namespace.path, cgroupsPath: `/${containerd.cgroupMark}/${podId}/${kind}` });
	const group = new ShimGroup(containerd, runtime);
	const shim = await DirectShim.start(containerd, { runtime, group, tools: bench.tools }, podId, spec("sandbox", ["sleep", "100000"]));
	const fifo = (stream: string): string => join(containerd.rootDir, `${podId}.${stream}`);
	const fifos = { stdin: fifo("in"), stdout: fifo("out"), stderr: fifo("err") };
	await runOk(["mkfifo", ...Object.values(fifos)]);
	// Input ends with its last writer, and runc's shim waits until somebody reads what goes wrong.
	const held = [fifos.stdin, fifos.stderr].map((path) => openSync(path, constants.O_RDWR | constants.O_NONBLOCK));
	await shim.create(podId, podRoot);
	await shim.startTask(podId);
	await shim.addBundle(containerId, spec("container", args));
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

type Pod = Awaited<ReturnType<typeof startPod>>;

/** The columns of a kind, in the order in which they take turns, each with the program's arguments. */
async function columnsOf(bench: Bench, kind: Kind, roots: Roots, owned: (() => Promise<void>)[]): Promise<[string, string[]][]> {
	const { stdio: program } = bench.tools;
	const through = (fifos: Pick<Pod["fifos"], "stdin" | "stdout">): string[] => [program, "fifo", fifos.stdin, fifos.stdout];
	const columns: [string, string[]][] = [];
	for (const runtime of bench.runtimes) {
		const pod = await startPod(bench, runtime, roots, kind);
		owned.push(pod.end);
		const warm = [...through(pod.fifos), String(64 * KIB), String(kind.chunk)];
		await Promise.all([pod.begin(), runOk(warm, { timeoutMs: TIMEOUT_MS })]);
		columns.push([runtime.name, through(pod.fifos)]);
		if (runtime.ours && kind.port !== undefined) columns.push([RAW, [program, "vsock", pod.vsock, kind.port]]);
	}
	if (kind.port === undefined) return columns;
	const between = await startBetween(bench, kind);
	owned.push(between.end);
	return [...columns, [FIFOS, through(between.fifos)]];
}

async function run(bench: Bench, kinds: readonly Kind[], rounds: number) {
	const samples = new Samples();
	const roots = new Roots(bench.bed);
	const owned: (() => Promise<void>)[] = [];
	try {
		const turns: { readonly kind: Kind; readonly column: string; readonly argv: readonly string[] }[] = [];
		for (const kind of kinds) for (const [column, argv] of await columnsOf(bench, kind, roots, owned)) turns.push({ kind, column, argv });
		for (let round = 1; round <= rounds; round++) {
			for (const { kind, column, argv } of round % 2 === 1 ? turns : turns.toReversed())
				samples.add(kind.id, column, await rate([...argv, String(kind.bytes), String(kind.chunk)], kind.bytes));
			bench.progress(`${round} of ${rounds}`);
		}
	} finally {
		for (const end of owned.toReversed()) await end();
		roots.close();
	}
	return { figures: kinds.map(({ id, name }) => samples.figure(id, name, "MiB/s", "more")) };
}

async function prepare({ bed, runtimes }: Bench): Promise<void> {
	await ShimGroup.prepare(bed.containerd, runtimes);
	await PodNamespace.prepare(bed.containerd);
}

/** Standard streams. */
export const stdio: Scenario = {
	name: "stdio",
	what: "standard streams: from a FIFO to the process and back to another, beside one stream of the VM's vsock without a shim, on which the same is read and written, and the process right between two FIFOs",
	vm: "null",
	prepare,
	run: (bench) => run(bench, KINDS, bench.runs(10, 3)),
};

/** The same with a real guest, whose agent and kernel are emulated. */
export const stdioGuest: Scenario = {
	name: "stdio-guest",
	what: "standard streams with a real guest: most is the emulation's",
	vm: "ch-qemu",
	prepare,
	run: (bench) => run(bench, GUEST_KINDS, bench.runs(4, 2)),
};
